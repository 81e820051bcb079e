// Which operators have typed interceptors: see typed_operators.h.
#include "torch/typed_operators.h"

#include <ATen/Operators.h>
#include <torch/csrc/jit/frontend/function_schema_parser.h>

#include <unordered_map>
#include <utility>

#include "locks/mutex.h"
#include "torch/typed_interceptor.h"

namespace tierpage {
namespace {

using Retired = std::shared_ptr<const std::atomic<bool>>;
using Make = std::optional<c10::KernelFunction> (*)(const c10::OperatorHandle&, const OperatorInfo*, const Retired&);

template <class Schema>
std::optional<c10::KernelFunction> make(const c10::OperatorHandle& op, const OperatorInfo* info,
                                        const Retired& retired) {
  using Kernel = TypedInterceptor<Schema>;
  if (!Kernel::Typed::fits(*info)) return std::nullopt;
  try {
    auto kernel =
        std::make_unique<Kernel>(op.typed<Schema>(), info, retired);  // throws where a kernel's signature differs
    return c10::KernelFunction::makeFromUnboxedFunctor<false, Kernel>(std::move(kernel));
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

struct Entry {
  const char* schema;
  Make make;
};
using Table = std::unordered_map<c10::OperatorName, Entry>;

template <class... Operators>
Table table_of() {
  Table table;
  (table.emplace(c10::OperatorName(Operators::name, Operators::overload_name),
                 Entry{Operators::schema_str, &make<typename Operators::schema>}),
   ...);
  return table;
}

namespace op = at::_ops;

Table make_table() {
  Table table;
  // Matrix products.
  table.merge(table_of<op::linear, op::matmul, op::mm, op::mm_out, op::addmm, op::addmm_out, op::bmm, op::bmm_out,
                       op::baddbmm, op::convolution, op::convolution_backward>());
  // Two tensors, or a tensor and a number.
  table.merge(table_of<op::add_Tensor, op::add__Tensor, op::add_out, op::sub_Tensor, op::sub__Tensor, op::sub_out,
                       op::mul_Tensor, op::mul__Tensor, op::mul_out, op::div_Tensor, op::div__Tensor, op::div_out,
                       op::add_Scalar, op::add__Scalar, op::sub_Scalar, op::sub__Scalar, op::mul_Scalar,
                       op::mul__Scalar, op::div_Scalar, op::div__Scalar, op::rsub_Scalar, op::pow_Tensor_Scalar,
                       op::pow_Tensor_Tensor, op::maximum, op::minimum, op::addcmul, op::addcmul_, op::addcdiv,
                       op::addcdiv_, op::lerp_Scalar, op::lerp__Scalar>());
  // Comparisons and choices.
  table.merge(table_of<op::eq_Tensor, op::eq_Scalar, op::ne_Tensor, op::ne_Scalar, op::lt_Tensor, op::lt_Scalar,
                       op::le_Tensor, op::le_Scalar, op::gt_Tensor, op::gt_Scalar, op::ge_Tensor, op::ge_Scalar,
                       op::where_self, op::masked_fill_Scalar, op::masked_fill__Scalar, op::bitwise_and_Tensor,
                       op::bitwise_or_Tensor, op::bitwise_not, op::logical_not>());
  // One tensor, element by element.
  table.merge(table_of<op::neg, op::neg_, op::abs, op::exp, op::log, op::sqrt, op::sqrt_, op::rsqrt, op::reciprocal,
                       op::sin, op::cos, op::tanh, op::tanh_, op::sigmoid, op::sigmoid_, op::silu, op::silu_, op::gelu,
                       op::relu, op::relu_, op::clamp, op::clamp_, op::clamp_min, op::fill__Scalar, op::zero_,
                       op::native_dropout, op::bernoulli__float>());
  // Sums, normalisations, attention.
  table.merge(table_of<op::sum, op::sum_dim_IntList, op::mean, op::mean_dim, op::argmax, op::max_dim, op::amax,
                       op::cumsum, op::topk, op::_softmax, op::_log_softmax, op::native_layer_norm, op::_fused_rms_norm,
                       op::native_group_norm, op::native_batch_norm, op::cudnn_batch_norm, op::max_pool2d_with_indices,
                       op::_scaled_dot_product_flash_attention, op::_scaled_dot_product_efficient_attention,
                       op::_scaled_dot_product_cudnn_attention, op::_scaled_dot_product_flash_attention_for_cpu,
                       op::nll_loss_forward>());
  // Copies, and what picks or joins parts.
  table.merge(table_of<op::copy_, op::_to_copy, op::clone, op::cat, op::stack, op::index_Tensor, op::index_select,
                       op::index_put_, op::index_copy_, op::embedding, op::gather, op::slice_scatter, op::tril,
                       op::triu, op::repeat, op::empty_like, op::zeros_like, op::ones_like, op::full_like,
                       op::new_empty, op::new_zeros, op::_local_scalar_dense, op::constant_pad_nd>());
  // Backward passes.
  table.merge(
      table_of<op::threshold_backward, op::gelu_backward, op::silu_backward, op::sigmoid_backward, op::tanh_backward,
               op::_softmax_backward_data, op::_log_softmax_backward_data, op::native_layer_norm_backward,
               op::native_dropout_backward, op::embedding_dense_backward, op::nll_loss_backward,
               op::_scaled_dot_product_flash_attention_backward, op::_scaled_dot_product_efficient_attention_backward,
               op::_scaled_dot_product_flash_attention_for_cpu_backward, op::slice_backward, op::select_backward,
               op::native_batch_norm_backward, op::cudnn_batch_norm_backward, op::max_pool2d_with_indices_backward>());
  return table;
}

const Table& table() {
  static const Table* const instance = new Table(make_table());
  return *instance;
}

// Of what was made. Leaked: operators may be registered until the end of the process.
struct Names {
  Mutex mutex{LockRank::kTypedNames};
  std::string lines TP_GUARDED_BY(mutex);
};
Names& names() {
  static Names* const instance = new Names;
  return *instance;
}

}  // namespace

std::optional<c10::KernelFunction> typed_kernel(const c10::OperatorHandle& op, const OperatorInfo* info,
                                                const std::shared_ptr<const std::atomic<bool>>& retired) {
  const auto found = table().find(op.operator_name());
  if (found == table().end()) return std::nullopt;
  if (torch::jit::parseSchema(std::string("aten::") + found->second.schema) != op.schema()) return std::nullopt;
  auto kernel = found->second.make(op, info, retired);
  if (!kernel.has_value()) return std::nullopt;
  const LockGuard lock(names().mutex);
  names().lines += c10::toString(op.operator_name()) + "\n";
  return kernel;
}

std::string typed_operator_names() {
  const LockGuard lock(names().mutex);
  return names().lines;
}

}  // namespace tierpage
