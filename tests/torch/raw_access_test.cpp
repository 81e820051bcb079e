// Accesses that no operator announces: by the hook in the storage, and by the calls of the Python package.
#include "torch/raw_access.h"

#include <thread>

#include "torch_test.h"

namespace tierpage {
namespace {

class RawAccessTest : public TorchTest {
 protected:
  // A tensor that an operator has used: its pages may leave, and its storage is armed.
  static at::Tensor used() {
    at::Tensor tensor = matrix();
    tensor.add_(1);
    return tensor;
  }
  static uint64_t touches() { return tierpage_torch_counter(kRawTouches); }
};

bool is_armed([[maybe_unused]] const at::Tensor& tensor) {
#if TIERPAGE_HAS_MATERIALIZER
  return tensor.storage().unsafeGetStorageImpl()->has_materializer();
#else
  return false;
#endif
}

class HookTest : public RawAccessTest {
 protected:
  void SetUp() override {
    RawAccessTest::SetUp();
    if (!TIERPAGE_HAS_MATERIALIZER) GTEST_SKIP() << "the first torch with a hook in its storages is 2.13";
  }
};

TEST_F(HookTest, AMutablePointerFetchesItsPages) {
  const at::Tensor x = used();
  EXPECT_TRUE(is_armed(x));
  const uint64_t before = touches();
  auto* numbers = static_cast<float*>(x.mutable_data_ptr());
  EXPECT_EQ(touches(), before + 1);
  for (int64_t i = 0; i < x.numel(); ++i) numbers[i] += 1;
  EXPECT_TRUE(all_equal(x, 3));
}

TEST_F(HookTest, KernelsDoNotMeetIt) {
  const at::Tensor x = used(), y = used();
  const uint64_t before = touches();
  x.add_(y);
  at::mm(x, y);
  EXPECT_EQ(touches(), before);
}

TEST_F(HookTest, ItIsArmedAgainAfterEachOperator) {
  const at::Tensor x = used();
  const uint64_t before = touches();
  x.mutable_data_ptr();
  x.mutable_data_ptr();
  EXPECT_EQ(touches(), before + 1) << "still there";
  x.add_(1);
  x.mutable_data_ptr();
  EXPECT_EQ(touches(), before + 2);
}

#if TIERPAGE_HAS_MATERIALIZER
TEST_F(HookTest, SwitchedOffItIsNotArmed) {
  tierpage_torch_set_option("materializer", 0);
  const at::Tensor x = used();
  EXPECT_FALSE(is_armed(x));
}
#endif

TEST_F(HookTest, AfterDetachItLeavesTheStorageAlone) {
  const at::Tensor x = used();
  const uint64_t before = touches();
  tierpage_torch_detach();
  x.mutable_data_ptr();
  EXPECT_EQ(touches(), before);
}

TEST_F(HookTest, WhatCannotBeFetchedThrowsAndIsAskedForAgain) {
  const at::Tensor x = used();
  static tp_engine_api failing;
  failing = *engine_for_tests();
  failing.touch = [](tp_scope*, uint64_t, uint32_t) { return static_cast<int32_t>(TP_STORAGE_ERROR); };
  ASSERT_EQ(tierpage_torch_attach(&failing, nullptr), TP_OK);
  EXPECT_EQ(code_of([&] { x.mutable_data_ptr(); }), TP_STORAGE_ERROR);
  ASSERT_EQ(tierpage_torch_attach(engine_for_tests(), nullptr), TP_OK);
  EXPECT_NO_THROW(x.mutable_data_ptr());
}

TEST_F(HookTest, ThreadsThatUseOneStorageArmItOneAtATime) {
  const at::Tensor x = used(), y = used();
  const auto use = [&] {
    for (int i = 0; i < 2000; ++i) {
      ASSERT_NO_THROW(at::equal(x, y));
      ASSERT_TRUE(thread_state().storages.empty());
    }
  };
  std::thread other(use);
  use();
  other.join();
  EXPECT_TRUE(is_armed(x));
}

TEST_F(RawAccessTest, TouchFetchesForAWhile) {
  const at::Tensor x = used();
  const at::Tensor y = matrix();
  const auto* numbers = reinterpret_cast<const float*>(address_of(x));
  ASSERT_EQ(tierpage_torch_touch(address_of(x)), TP_OK);
  EXPECT_EQ(numbers[7], 2);
  for (int i = 0; i < 60; ++i) y.add_(1);
  EXPECT_EQ(numbers[7], 2);
  const uint64_t evictions = fake_evictions();
  for (int i = 0; i < 10; ++i) y.add_(1);
  EXPECT_EQ(fake_evictions(), evictions + 10 + 1) << "y each time, x once";
}

TEST_F(RawAccessTest, AViewIsToldOfUntilItEnds) {
  const at::Tensor x = used();
  tierpage_torch_view(address_of(x), 1);
  tierpage_torch_view(address_of(x), 1);
  EXPECT_EQ(fake_views(address_of(x)), 2);
  tierpage_torch_detach();  // a view may outlive the session
  tierpage_torch_view(address_of(x), -1);
  EXPECT_EQ(fake_views(address_of(x)), 1);
  tierpage_torch_view(1, 1);  // nobody's
}

// The pointers of one launch, however many there are: which of them has to go for others is the engine's to say.
TEST_F(RawAccessTest, TouchesDoNotEndEachOther) {
  std::vector<at::Tensor> tensors;
  for (int i = 0; i < 130; ++i) tensors.push_back(used());
  fake_set_run_bytes_max(4096);
  const uint64_t evictions = fake_evictions();
  for (const at::Tensor& tensor : tensors) raw_touch(engine_for_tests(), address_of(tensor), 4096);
  EXPECT_EQ(fake_evictions(), evictions);
  for (const at::Tensor& tensor : tensors) EXPECT_EQ(reinterpret_cast<const float*>(address_of(tensor))[7], 2);
}

TEST_F(RawAccessTest, InsideAnOperatorATouchJoinsItsScope) {
  const at::Tensor x = used();
  ThreadState& state = thread_state();
  state.engine = engine_for_tests();
  state.depth = 1;  // as within a kernel that looks at a tensor of which no argument told
  const auto all = begun([&] { raw_touch(engine_for_tests(), address_of(x), 4096); });
  state.depth = 0;
  ASSERT_TRUE(state.scope_open);
  engine_for_tests()->scope_close(state.scope, 0);
  state.scope_open = false;
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].name, "tierpage::raw_access");
  EXPECT_EQ(all[0].accesses[0].mode, TP_READ | TP_WRITE);
}

TEST_F(RawAccessTest, InsideAnOperatorThatAnnouncedItATouchAddsNothing) {
  const at::Tensor read = used(), other = used();
  ThreadState& state = thread_state();
  state.engine = engine_for_tests();
  state.depth = 1;
  const tp_operator op{"tierpage_tests::reads", 1};
  const tp_access access{address_of(read), 4096, TP_READ, 0};
  const auto all = begun([&] {
    begin_accesses(state, op, &access, 1);
    raw_touch(engine_for_tests(), address_of(read), 4096);
    raw_touch(engine_for_tests(), address_of(other), 4096);
  });
  state.depth = 0;
  engine_for_tests()->scope_close(state.scope, 0);
  state.scope_open = false;
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].accesses[0].mode, uint32_t{TP_READ});
  EXPECT_EQ(all[1].accesses[0].mode, TP_READ | TP_WRITE) << "of the other the operator has said nothing";
}

TEST_F(RawAccessTest, WhatIsNotOursIsLeftAlone) {
  const at::Tensor small = at::ones({4});
  const uint64_t before = touches();
  EXPECT_EQ(tierpage_torch_touch(address_of(small)), TP_OK);
  EXPECT_EQ(tierpage_torch_touch(engine_for_tests()->range_base + engine_for_tests()->range_bytes - 1), TP_OK);
  EXPECT_EQ(touches(), before);
}

TEST_F(RawAccessTest, AskingForAnAddressFetchesNothing) {
  const at::Tensor x = used();
  const uint64_t before = touches();
  EXPECT_EQ(log_of([&] { address_of(x); }), "");
  EXPECT_EQ(touches(), before);
}

}  // namespace
}  // namespace tierpage
