// Operators over lists, run in pieces: the results are those of the whole, and a piece holds no more than it may.
#include "torch/list_ops.h"

#include "torch_test.h"

namespace tierpage {
namespace {

class ListOpsTest : public TorchTest {
 protected:
  static constexpr uint64_t kBytes = 4000;  // of each tensor

  static std::vector<at::Tensor> tensors(size_t count, double first = 1) {
    std::vector<at::Tensor> list;
    for (size_t i = 0; i < count; ++i) list.push_back(at::full({1000}, first + static_cast<double>(i)));
    return list;
  }
  static void expect_equal(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(at::equal(found[i], expected[i])) << i;
  }
  // The outermost operators that began during the call, which must split its operator.
  static std::vector<Begun> split(const std::function<void()>& action) {
    const uint64_t before = tierpage_torch_counter(kListOperatorsSplit);
    auto all = begun_outermost(action);
    EXPECT_EQ(tierpage_torch_counter(kListOperatorsSplit), before + 1);
    return all;
  }
};

TEST_F(ListOpsTest, WhatFitsRunsWhole) {
  auto list = tensors(5);
  fake_set_run_bytes_max(5 * kBytes);
  EXPECT_EQ(begun_outermost([&] { at::_foreach_add_(list, 1); }).size(), 1u);
}

TEST_F(ListOpsTest, APieceTakesAsManyIndicesAsFit) {
  auto list = tensors(5);
  fake_set_run_bytes_max(2 * kBytes + 100);
  fake_take_largest_scope();
  const auto pieces = split([&] { at::_foreach_add_(list, 1); });
  EXPECT_EQ(fake_take_largest_scope(), 2 * kBytes);
  ASSERT_EQ(pieces.size(), 3u);
  EXPECT_EQ(pieces[0].accesses.size(), 2u);
  EXPECT_EQ(pieces[2].accesses.size(), 1u);
  expect_equal(list, tensors(5, 2));
}

TEST_F(ListOpsTest, AnIndexThatExceedsTheLimitRunsAlone) {
  auto list = tensors(3);
  fake_set_run_bytes_max(1);
  EXPECT_EQ(split([&] { at::_foreach_mul_(list, 2); }).size(), 3u);
  EXPECT_TRUE(all_equal(list[2], 6));
}

TEST_F(ListOpsTest, NewResultsAreJoinedAndCountAsMuchAsTheArguments) {
  const auto list = tensors(5);
  const auto expected = unpaged<std::vector<at::Tensor>>([] { return at::_foreach_add(tensors(5), 1); });
  fake_set_run_bytes_max(4 * kBytes);
  fake_take_largest_scope();
  std::vector<at::Tensor> results;
  EXPECT_EQ(split([&] { results = at::_foreach_add(list, 1); }).size(), 3u);
  EXPECT_LE(fake_take_largest_scope(), 4 * kBytes);
  expect_equal(results, expected);
  EXPECT_TRUE(is_paged(results[4]));
}

TEST_F(ListOpsTest, ListsOfNumbersAndTensorsOfNumbersAreSplitAlike) {
  const auto add = [](std::vector<at::Tensor> list) {
    at::_foreach_add_(list, {at::Scalar(1), at::Scalar(2), at::Scalar(3)});
    at::_foreach_addcdiv_(list, tensors(3), tensors(3, 5), at::tensor({1.0, 10.0, 100.0}));
    return list;
  };
  const auto expected = unpaged<std::vector<at::Tensor>>([&] { return add(tensors(3)); });
  const uint64_t before = tierpage_torch_counter(kListOperatorsSplit);
  fake_set_run_bytes_max(1);
  expect_equal(add(tensors(3)), expected);
  EXPECT_EQ(tierpage_torch_counter(kListOperatorsSplit), before + 2);
}

TEST_F(ListOpsTest, ListsThatDoNotMatchAreRefusedBeforeAnythingIsWritten) {
  auto list = tensors(4);
  fake_set_run_bytes_max(1);
  EXPECT_THROW(at::_foreach_add_(list, tensors(3)), c10::Error);
  EXPECT_THROW(at::_foreach_addcdiv_(list, tensors(4), tensors(4), at::tensor({1.0, 2.0})), c10::Error);
  expect_equal(list, tensors(4));
  EXPECT_TRUE(at_rest());
}

TEST_F(ListOpsTest, AnOptimizerGoesWithoutTheListsThatItDoesNotKeep) {
  const auto step = [] {
    auto parameters = tensors(3), gradients = tensors(3, 0.5), averages = tensors(3, 0), squares = tensors(3, 0);
    std::vector<at::Tensor> largest, steps;
    for (int i = 0; i < 3; ++i) steps.push_back(at::ones({}));
    at::_fused_adamw_(parameters, gradients, averages, squares, largest, steps, 0.1, 0.9, 0.999, 0.01, 1e-8, false,
                      false);
    parameters.insert(parameters.end(), squares.begin(), squares.end());
    return parameters;
  };
  const auto expected = unpaged<std::vector<at::Tensor>>(step);
  fake_set_run_bytes_max(1);
  std::vector<at::Tensor> found;
  split([&] { found = step(); });
  expect_equal(found, expected);
}

TEST_F(ListOpsTest, WhatAPieceThatFailsLeavesUndoneRunsWhenItIsUsed) {
  auto list = tensors(4);
  list[2] = at::ones({20'000});
  fake_set_run_bytes_max(1);
  fake_set_budget(10'000);
  std::string message;
  EXPECT_EQ(code_of([&] { at::_foreach_add_(list, 1); }, &message), TP_OUT_OF_MEMORY);
  EXPECT_NE(message.find("2 of 4 tensors of its lists are done, the others will be"), std::string::npos) << message;
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(all_equal(list[1], 3)) << "the pieces before it ran";
  EXPECT_TRUE(all_equal(list[3], 5));
  EXPECT_EQ(code_of([&] { list[2].sum(); }), TP_OUT_OF_MEMORY);
  fake_set_budget(~0ull);
  EXPECT_TRUE(all_equal(list[2], 2));
}

TEST_F(ListOpsTest, AFirstPieceThatFailsLeavesNothingBehind) {
  auto list = tensors(3);
  fake_set_run_bytes_max(1);
  fake_set_budget(1000);
  std::string message;
  EXPECT_EQ(code_of([&] { at::_foreach_add_(list, 1); }, &message), TP_OUT_OF_MEMORY);
  EXPECT_EQ(message.find("had begun"), std::string::npos) << message;
  fake_set_budget(~0ull);
  expect_equal(list, tensors(3));
}

TEST_F(ListOpsTest, LengthsAndSelections) {
  const auto info = described("aten::_foreach_add_.List");
  ASSERT_TRUE(info.has_value());
  const std::vector<c10::IValue> values{tensors(3), tensors(3, 7), 1};
  EXPECT_EQ(common_length(*info, values.data()), 3u);
  const std::vector<c10::IValue> unlike{tensors(3), tensors(2), 1};
  EXPECT_EQ(common_length(*info, unlike.data()), 0u);
  const std::vector<c10::IValue> empty{tensors(3), std::vector<at::Tensor>{}, 1};
  EXPECT_EQ(common_length(*info, empty.data()), 3u);
  EXPECT_EQ(list_length(c10::IValue(1)), 0u);
  const c10::Stack selected = select_indices(*info, values.data(), {2, 0});
  ASSERT_EQ(selected.size(), 3u);
  expect_equal(selected[0].toTensorVector(), {values[0].toTensorVector()[2], values[0].toTensorVector()[0]});
  expect_equal(selected[1].toTensorVector(), {values[1].toTensorVector()[2], values[1].toTensorVector()[0]});
}

}  // namespace
}  // namespace tierpage
