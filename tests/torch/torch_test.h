// What the tests of csrc/torch have in common: the engine's stand-in is attached, and lets nothing be touched that was
// not announced.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "torch/engine_link.h"
#include "torch/errors.h"
#include "torch/operator_info.h"
#include "torch_fake_engine/fake_engine.h"

extern "C" {
int32_t tierpage_torch_install(void);
int32_t tierpage_torch_attach(const tp_engine_api* engine, PyObject* const* error_types);
void tierpage_torch_detach(void);
const char* tierpage_torch_last_error(void);
uint64_t tierpage_torch_counter(int32_t which);
int32_t tierpage_torch_set_option(const char* name, int32_t value);
int32_t tierpage_torch_fill_storage(uint64_t storage_impl, uint64_t place, uint64_t bytes);
int32_t tierpage_torch_run_deferred(uint64_t address);
int32_t tierpage_torch_touch(uint64_t address);
void tierpage_torch_end_batch(void);
void tierpage_torch_view(uint64_t address, int32_t change);
uint64_t tierpage_torch_storage_address(uint64_t storage_impl);
}

namespace tierpage {

constexpr uint64_t kMinPagedBytes = 1024;  // 256 floats
constexpr int64_t kSide = 32;              // a matrix of so many rows and columns is a page of 4096 bytes

const tp_engine_api* engine_for_tests();  // one per process

// What describe_operator said of an operator, "aten::add.Tensor", before interceptors stood in front of all.
const std::optional<OperatorInfo>& described(const std::string& name);

// One access that the engine was told of.
struct Announced {
  std::string address;  // offset in the range, or "new<number>+<offset>" of a region made since the log began
  uint64_t bytes;
  uint32_t mode;
};
// One operator that began.
struct Begun {
  std::string name;
  std::vector<Announced> accesses;
  bool outermost = false;  // the first of its scope
};
std::vector<Begun> begun_in(const std::string& log);

// The engine is attached during each test; its settings are plain again afterwards.
class TorchTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  // What the engine was told during the call.
  static std::string log_of(const std::function<void()>& action);
  static std::vector<Begun> begun(const std::function<void()>& action) { return begun_in(log_of(action)); }
  // The same without those that ran inside another.
  static std::vector<Begun> begun_outermost(const std::function<void()>& action) {
    std::vector<Begun> all = begun(action);
    std::erase_if(all, [](const Begun& one) { return !one.outermost; });
    return all;
  }
  // The error that leaves the call must be a PagerError; its code.
  static int32_t code_of(const std::function<void()>& action, std::string* message = nullptr);

  // As a program that is not paged computes it.
  template <class Result>
  static Result unpaged(const std::function<Result()>& action) {
    tierpage_torch_detach();
    Result result = action();
    tierpage_torch_attach(engine_for_tests(), nullptr);
    return result;
  }

  static at::Tensor matrix(double value = 1) { return at::full({kSide, kSide}, value); }
  static uint64_t address_of(const at::Tensor& tensor) {
    return tierpage_torch_storage_address(reinterpret_cast<uint64_t>(tensor.storage().unsafeGetStorageImpl()));
  }
  static bool is_paged(const at::Tensor& tensor) {
    return owns(*engine_for_tests(), reinterpret_cast<void*>(address_of(tensor)));
  }
  static bool is_live(uint64_t address) {
    uint64_t base = 0;
    return engine_for_tests()->region_bytes(address, &base) != 0;
  }
  // Whether every element equals `value`.
  static bool all_equal(const at::Tensor& tensor, double value) {
    return at::equal(tensor, at::full_like(tensor, value));
  }
  // Nothing of an operator is left in this thread.
  static bool at_rest() {
    const ThreadState& state = thread_state();
    return state.depth == 0 && !state.scope_open && state.accesses.empty() && state.storages.empty();
  }
};

}  // namespace tierpage
