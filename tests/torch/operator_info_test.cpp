// What schemas say of operators, and which bytes their arguments cover.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <algorithm>

#include "torch_test.h"

// Operators as extensions register them. A class of its own, so that no other file's names meet these.
TORCH_LIBRARY(tierpage_schemas, library) {
  library.def("unmarked(Tensor x) -> ()");
  library.def("forgotten(Tensor x, float by) -> Tensor");
  library.def("marked(Tensor(a!) x, Tensor y) -> ()");
  library.def("declared(Tensor x) -> Tensor", {at::Tag::pt2_compliant_tag});
  library.def("dictionary(Dict(str, Tensor) named, int number) -> Tensor");
  library.def("view(Tensor(a) x) -> Tensor(a)");
  library.def("faked(Tensor x) -> Tensor");
  library.def("faked_without_results(Tensor x) -> ()");
  library.def("faked_later(Tensor x) -> Tensor");
}

TORCH_LIBRARY_IMPL(tierpage_schemas, Meta, library) {
  library.impl("faked", [](const at::Tensor& x) { return at::empty_like(x); });
  library.impl("faked_without_results", [](const at::Tensor&) {});
}

namespace tierpage {
namespace {

constexpr uint32_t kRead = TP_READ;
constexpr uint32_t kWritten = TP_READ | TP_WRITE;

class OperatorInfoTest : public TorchTest {
 protected:
  static OperatorInfo info(const std::string& name) {
    const auto& found = described(name);
    EXPECT_TRUE(found.has_value()) << name << " is not intercepted";
    return found.value_or(OperatorInfo{});
  }
  static std::vector<uint32_t> modes(const std::string& name) {
    std::vector<uint32_t> all;
    for (const ArgumentInfo& argument : info(name).arguments) all.push_back(argument.mode);
    return all;
  }

  // The accesses of one argument, with addresses counted from the first byte of `base`.
  static std::vector<std::pair<uint64_t, uint64_t>> reached(const c10::IValue& value, const at::Tensor& base,
                                                            bool whole = false) {
    ThreadState& state = thread_state();
    collect_argument(state, *engine_for_tests(), ArgumentInfo{0, ArgumentKind::kAny, kRead, whole}, value, false);
    std::vector<std::pair<uint64_t, uint64_t>> all;
    for (const tp_access& access : state.accesses) all.emplace_back(access.address - address_of(base), access.bytes);
    state.accesses.clear();
    return all;
  }
};
using Reached = std::vector<std::pair<uint64_t, uint64_t>>;

TEST_F(OperatorInfoTest, TheSchemaTellsWhatIsReadAndWhatIsWritten) {
  EXPECT_EQ(modes("aten::add.Tensor"), (std::vector<uint32_t>{kRead, kRead}));
  EXPECT_EQ(modes("aten::add_.Tensor"), (std::vector<uint32_t>{kWritten, kRead}));
  EXPECT_EQ(modes("aten::add.out"), (std::vector<uint32_t>{kRead, kRead, kWritten}));
  EXPECT_EQ(modes("aten::native_batch_norm")[4], kWritten) << "running_var, which no schema marks";
}

TEST_F(OperatorInfoTest, AnOutArgumentCountsWhole) {
  const OperatorInfo add = info("aten::add.out");
  EXPECT_FALSE(add.arguments[0].whole_storage);
  EXPECT_TRUE(add.arguments[2].whole_storage);
  EXPECT_TRUE(info("aten::resize_").arguments[0].whole_storage);
  EXPECT_FALSE(info("aten::add_.Tensor").arguments[0].whole_storage);
}

TEST_F(OperatorInfoTest, ViewsAndOperatorsMadeOfOthersAreLeftAlone) {
  for (const char* name : {"aten::view", "aten::transpose.int", "aten::transpose_", "aten::slice.Tensor",
                           "aten::detach", "aten::_unsafe_view", "aten::is_same_size", "aten::reshape"}) {
    EXPECT_FALSE(described(name).has_value()) << name;
  }
  EXPECT_TRUE(described("aten::as_strided_").has_value());
  EXPECT_TRUE(described("tierpage_schemas::view").has_value()) << "only aten is trusted to mean it";
}

TEST_F(OperatorInfoTest, OptionalTensorsAndListsAreFound) {
  const OperatorInfo index = info("aten::index.Tensor");
  ASSERT_EQ(index.arguments.size(), 2u);
  EXPECT_EQ(index.arguments[1].kind, ArgumentKind::kList);
  const OperatorInfo norm = info("aten::native_layer_norm");
  ASSERT_EQ(norm.arguments.size(), 3u);
  EXPECT_EQ(norm.arguments[1].index, 2u) << "normalized_shape holds no tensors";
  EXPECT_EQ(norm.arguments[1].kind, ArgumentKind::kTensor);
  EXPECT_EQ(info("tierpage_schemas::dictionary").arguments[0].kind, ArgumentKind::kAny);
}

TEST_F(OperatorInfoTest, WithoutAnyMarkAnExtensionsOperatorMayWriteAll) {
  EXPECT_EQ(modes("tierpage_schemas::unmarked"), (std::vector<uint32_t>{kWritten}));
  EXPECT_EQ(modes("tierpage_schemas::forgotten"), (std::vector<uint32_t>{kWritten})) << "although it has a result";
  EXPECT_TRUE(info("tierpage_schemas::forgotten").arguments[0].whole_storage);
  EXPECT_EQ(modes("tierpage_schemas::declared"), (std::vector<uint32_t>{kRead})) << "its author vouches for its schema";
  EXPECT_EQ(modes("tierpage_schemas::marked"), (std::vector<uint32_t>{kWritten, kRead}));
}

TEST_F(OperatorInfoTest, AFakeImplementationVouchesForTheSchemaOfWhatHasResults) {
  EXPECT_EQ(modes("tierpage_schemas::faked"), (std::vector<uint32_t>{kRead}));
  EXPECT_EQ(modes("tierpage_schemas::faked_without_results"), (std::vector<uint32_t>{kWritten})) << "it must write";
}

TEST_F(OperatorInfoTest, AFakeThatComesLaterIsSeenWithTheNextOperatorThatALibraryRegisters) {
  using Compute = at::Tensor(const at::Tensor&);
  torch::Library kernels(torch::Library::IMPL, "tierpage_schemas", c10::DispatchKey::CPU, __FILE__, __LINE__);
  kernels.impl("faked_later", [](const at::Tensor& given) { return given.clone(); });
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("tierpage_schemas::faked_later", "").typed<Compute>();
  const at::Tensor x = matrix();
  const auto mode = [&] { return begun_outermost([&] { op.call(x); }).at(0).accesses.at(0).mode; };
  EXPECT_EQ(mode(), kWritten);
  torch::Library fakes(torch::Library::IMPL, "tierpage_schemas", c10::DispatchKey::Meta, __FILE__, __LINE__);
  fakes.impl("faked_later", [](const at::Tensor& given) { return at::empty_like(given); });
  torch::Library another(torch::Library::DEF, "tierpage_schemas_more", std::nullopt, __FILE__, __LINE__);
  another.def("anything(Tensor x) -> Tensor");
  x.clone();
  EXPECT_EQ(mode(), kRead);
}

TEST_F(OperatorInfoTest, WhatWorksIndexByIndexMayBeSplit) {
  EXPECT_TRUE(info("aten::_foreach_add_.Scalar").splittable);
  EXPECT_EQ(info("aten::_foreach_add_.Scalar").fresh_lists, 0u);
  EXPECT_TRUE(info("aten::_foreach_add.Scalar").splittable);
  EXPECT_EQ(info("aten::_foreach_add.Scalar").fresh_lists, 1u);
  EXPECT_TRUE(info("aten::_fused_adamw_").splittable);
  EXPECT_FALSE(info("aten::cat").splittable);
  EXPECT_TRUE(info("aten::cat").list_arguments.empty());
  EXPECT_EQ(info("aten::_foreach_add_.ScalarList").list_arguments.size(), 2u) << "the list of numbers is split as well";
}

TEST_F(OperatorInfoTest, AFusedOptimizerReadsItsGradientsUnlessItUnscalesThem) {
  const OperatorInfo adamw = info("aten::_fused_adamw_");
  const auto is_read = [&](const ArgumentInfo& it) { return static_cast<int32_t>(it.index) == adamw.read_index; };
  const auto gradients = std::find_if(adamw.arguments.begin(), adamw.arguments.end(), is_read);
  ASSERT_NE(gradients, adamw.arguments.end());
  std::vector<c10::IValue> values(adamw.argument_count);
  EXPECT_EQ(adamw.as_called(*gradients, values.data()).mode, kRead);
  values[static_cast<size_t>(adamw.read_if_none_index)] = at::ones({});
  EXPECT_EQ(adamw.as_called(*gradients, values.data()).mode, kWritten);
}

TEST_F(OperatorInfoTest, LinearIsMadeOfOthersUnlessItsTensorsAreNested) {
  EXPECT_TRUE(info("aten::linear").decomposes_unless_nested);
  EXPECT_FALSE(info("aten::mm").decomposes_unless_nested);
}

TEST_F(OperatorInfoTest, TheHashIsThatOfNameAndOverloadForEver) {
  EXPECT_EQ(info("aten::add.Tensor").identity.hash, 0x46a35def8d03fcf9ull);
}

TEST_F(OperatorInfoTest, AnArgumentCoversWhatItsStridesReach) {
  const at::Tensor x = matrix();
  const uint64_t row = kSide * sizeof(float);
  EXPECT_EQ(reached(x, x), (Reached{{0, kSide * row}}));
  EXPECT_EQ(reached(x.t(), x), (Reached{{0, kSide * row}}));
  EXPECT_EQ(reached(x[3], x), (Reached{{3 * row, row}}));
  EXPECT_EQ(reached(x.slice(0, 2, 4).slice(1, 1, 3), x), (Reached{{2 * row + 4, row + 8}}));
  EXPECT_EQ(reached(x[3].expand({5, kSide}), x), (Reached{{3 * row, row}}));
  EXPECT_EQ(reached(x.slice(0, 2, 4), x, true), (Reached{{0, kSide * row}})) << "the whole storage";
  EXPECT_EQ(reached(x.slice(0, 2, 2), x), Reached{}) << "empty";
  EXPECT_EQ(reached(at::ones({4}), x), Reached{}) << "not paged";
  EXPECT_EQ(reached(c10::IValue(), x), Reached{}) << "None";
}

TEST_F(OperatorInfoTest, TensorsAreFoundInsideWhateverHoldsThem) {
  const at::Tensor x = matrix();
  const uint64_t bytes = kSide * kSide * sizeof(float);
  EXPECT_EQ(reached(std::vector<at::Tensor>{x, at::ones({4}), x}, x), (Reached{{0, bytes}, {0, bytes}}));
  EXPECT_EQ(reached(c10::ivalue::Tuple::create({x, 3, c10::IValue()}), x), (Reached{{0, bytes}}));
  c10::Dict<std::string, at::Tensor> named;
  named.insert("weight", x);
  EXPECT_EQ(reached(named, x), (Reached{{0, bytes}}));
  EXPECT_EQ(reached(x.storage(), x), (Reached{{0, bytes}}));
}

TEST_F(OperatorInfoTest, ASparseTensorIsItsMembers) {
  const at::Tensor indices = at::zeros({1, 200}, at::kLong);  // 1600 bytes
  const at::Tensor values = at::ones({200, 8});               // 6400 bytes
  const at::Tensor sparse = at::_sparse_coo_tensor_unsafe(indices, values, {4, 8}, at::TensorOptions());
  const Reached all = reached(sparse, indices);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0], (std::pair<uint64_t, uint64_t>{0, 1600}));
  EXPECT_EQ(all[1], (std::pair<uint64_t, uint64_t>{address_of(values) - address_of(indices), 6400}));
}

TEST_F(OperatorInfoTest, PagedBytesAreCountedInWholeGranules) {
  tp_engine_api coarse = *engine_for_tests();
  coarse.granule_bytes = 4096;
  const at::Tensor x = matrix();
  const ArgumentInfo argument{0, ArgumentKind::kTensor, kRead, false};
  EXPECT_EQ(collect_argument(thread_state(), coarse, argument, x[3], false), 4096u);
  EXPECT_EQ(collect_argument(thread_state(), *engine_for_tests(), argument, x[3], false), kSide * sizeof(float));
  thread_state().accesses.clear();
}

}  // namespace
}  // namespace tierpage
