// Workspaces made ahead: see library_workspaces.h.
#include "torch/library_workspaces.h"

#include <algorithm>
#include <array>

#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include "torch/cuda_symbols.h"
#include "torch/errors.h"

namespace tierpage {
namespace {

constexpr std::array<std::string_view, 9> kBlasOnly = {"aten::mm",     "aten::bmm",  "aten::baddbmm",
                                                       "aten::addbmm", "aten::mv",   "aten::addmv",
                                                       "aten::dot",    "aten::vdot", "aten::_int_mm"};
constexpr std::array<std::string_view, 3> kLtToo = {"aten::addmm", "aten::_addmm_activation", "aten::_scaled_mm"};

bool contains(const auto& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

Workspaces workspaces_of(std::string_view operator_name) {
  if (contains(kLtToo, operator_name)) return Workspaces::kBlasAndLt;
  return contains(kBlasOnly, operator_name) ? Workspaces::kBlas : Workspaces::kNone;
}

void make_workspaces(ThreadState& state, Workspaces needed) {
  if (state.scope_open || state.engine->device_type == 0) return;
  if (__atomic_load_n(state.engine->launches.watched, __ATOMIC_RELAXED) == 0) return;
  const uint64_t stream = native_stream(*state.engine);
  if (state.workspaces_on == stream && state.workspaces >= static_cast<uint8_t>(needed)) return;
  // Tried once: what cannot be made here is not asked for before every product.
  state.workspaces_on = stream;
  state.workspaces = static_cast<uint8_t>(needed);
  const CudaSymbols& symbols = cuda_symbols();
  try {
    const c10::DeviceGuard on({c10::kCUDA, static_cast<c10::DeviceIndex>(state.engine->device_index)});
    if (symbols.blas_handle != nullptr) (void)symbols.blas_handle(true);
    if (needed == Workspaces::kBlasAndLt && symbols.blas_lt_workspace != nullptr) (void)symbols.blas_lt_workspace();
  } catch (const c10::Error&) {
    return;
  } catch (const PagerError&) {
    return;
  }
}

}  // namespace tierpage
