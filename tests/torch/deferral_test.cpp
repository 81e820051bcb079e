// Fused optimizer steps that run later: every use sees what it would see in the program's order (torch/deferral.h).
#include "torch/deferral.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "torch_test.h"

namespace tierpage {
namespace {

// The parameters of a small model with gradients and states, and one fused step over all.
struct Model {
  explicit Model(size_t count) {
    for (size_t i = 0; i < count; ++i) {
      parameters.push_back(at::full({1000}, 1.0 + static_cast<double>(i)));
      gradients.push_back(at::full({1000}, 0.5));
      averages.push_back(at::zeros({1000}));
      squares.push_back(at::zeros({1000}));
      steps.push_back(at::zeros({}));
    }
  }
  void step() {
    at::_foreach_add_(steps, 1);
    at::_fused_adamw_(parameters, gradients, averages, squares, {}, steps, 0.1, 0.9, 0.999, 0.01, 1e-8, false, false);
  }

  std::vector<at::Tensor> parameters, gradients, averages, squares, steps;
};

class DeferralTest : public TorchTest {
 protected:
  void SetUp() override {
    TorchTest::SetUp();
    fake_set_run_bytes_max(1);
    fake_set_defers(1);
  }

  // The parameters after `steps` steps in the program's order.
  static std::vector<at::Tensor> expected(size_t count, int steps = 1) {
    return unpaged<std::vector<at::Tensor>>([&] {
      Model model(count);
      for (int i = 0; i < steps; ++i) model.step();
      return model.parameters;
    });
  }
  static uint32_t waiting() { return DeferredTable::waiting(); }
  static size_t fused_in(const std::string& log) {
    size_t count = 0;
    for (const Begun& one : begun_in(log)) count += one.name == "aten::_fused_adamw_";
    return count;
  }
};

TEST_F(DeferralTest, AnIndexRunsWhenOneOfItsTensorsIsUsed) {
  const auto after = expected(3);
  Model model(3);
  EXPECT_EQ(fused_in(log_of([&] { model.step(); })), 0u);
  EXPECT_EQ(waiting(), 3u);
  bool right = false;
  const std::string log = log_of([&] { right = at::equal(model.parameters[1], after[1]); });
  EXPECT_TRUE(right);
  EXPECT_EQ(fused_in(log), 1u) << log;
  EXPECT_LT(log.find("_fused_adamw_"), log.find("aten::equal")) << log;
  EXPECT_EQ(waiting(), 2u);
  model.squares[0].sum();  // a state's use runs its index as well
  EXPECT_EQ(waiting(), 1u);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(model.parameters[i], after[i])) << i;
  EXPECT_EQ(waiting(), 0u);
}

TEST_F(DeferralTest, TheNextStepComesBehindTheOneThatWaits) {
  const auto after = expected(3, 3);
  Model model(3);
  for (int i = 0; i < 3; ++i) model.step();
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(model.parameters[i], after[i])) << i;
}

TEST_F(DeferralTest, DetachRunsAllOfIt) {
  const auto after = expected(3);
  Model model(3);
  model.step();
  tierpage_torch_detach();
  EXPECT_EQ(waiting(), 0u);
  ASSERT_EQ(tierpage_torch_attach(engine_for_tests(), nullptr), TP_OK);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(model.parameters[i], after[i])) << i;
}

TEST_F(DeferralTest, WhatTheProgramDoesToItsOwnObjectsChangesNothing) {
  const auto after = expected(3);
  Model model(3);
  model.step();
  model.steps[0].fill_(100);                                      // (3): copied when it was deferred
  for (at::Tensor& gradient : model.gradients) gradient.reset();  // (4): kept alive
  const at::Tensor old = model.parameters[1].alias();
  model.parameters[1].set_data(at::zeros({1000}));
  EXPECT_TRUE(at::equal(model.parameters[0], after[0]));
  EXPECT_TRUE(at::equal(old, after[1]));
  EXPECT_TRUE(all_equal(model.parameters[1], 0));
}

TEST_F(DeferralTest, ARegionsAddressRunsItsIndexAlone) {
  Model model(3);
  model.step();
  EXPECT_EQ(tierpage_torch_run_deferred(address_of(model.averages[2]) + 100), TP_OK);
  EXPECT_EQ(waiting(), 2u);
  EXPECT_EQ(tierpage_torch_run_deferred(0), TP_OK);
  EXPECT_EQ(waiting(), 0u);
}

TEST_F(DeferralTest, ARawPointerComesBehindWhatWaits) {
  const auto after = expected(2);
  Model model(2);
  model.step();
  ASSERT_EQ(tierpage_torch_touch(address_of(model.parameters[0])), TP_OK);
  EXPECT_EQ(waiting(), 1u);
  ASSERT_EQ(tierpage_torch_touch(address_of(model.parameters[1])), TP_OK);
  EXPECT_EQ(waiting(), 0u);
  EXPECT_TRUE(at::equal(model.parameters[0], after[0]));
}

TEST_F(DeferralTest, IndicesThatShareARegionRunAtOnceInTheirOrder) {
  Model model(4);
  at::Tensor both = at::ones({2000});
  const at::Tensor first = both.slice(0, 0, 1000), second = both.slice(0, 1000, 2000);
  model.parameters[1] = first;
  model.parameters[2] = second;
  const std::string log = log_of([&] { model.step(); });
  EXPECT_EQ(waiting(), 2u);
  EXPECT_EQ(fused_in(log), 2u) << log;
}

TEST_F(DeferralTest, WhatIsNotPagedRunsAtOnce) {
  Model model(3);
  model.gradients[1] = at::ones({1000}).slice(0, 0, 1000);
  model.parameters[0] = at::ones({4});
  for (auto* list : {&model.gradients, &model.averages, &model.squares}) (*list)[0] = at::zeros({4});
  model.step();
  EXPECT_EQ(waiting(), 2u);
}

TEST_F(DeferralTest, NothingWaitsWhereTheEngineOrTheUserDoesNotWantIt) {
  Model model(3);
  fake_set_defers(0);
  model.step();
  EXPECT_EQ(waiting(), 0u);
  fake_set_defers(1);
  tierpage_torch_set_option("deferral", 0);
  model.step();
  EXPECT_EQ(waiting(), 0u);
  tierpage_torch_set_option("deferral", 1);
  model.step();
  EXPECT_EQ(waiting(), 3u);
}

TEST_F(DeferralTest, WhatNobodyCanSeeIsLetGoWithoutRunning) {
  const uint64_t counted = tierpage_torch_counter(kIndicesDeferred);
  auto model = std::make_unique<Model>(3);
  model->step();
  EXPECT_EQ(tierpage_torch_counter(kIndicesDeferred), counted + 3);
  const at::Tensor seen = model->averages[1];
  const uint64_t freed = address_of(model->parameters[0]), kept = address_of(model->parameters[1]);
  model.reset();
  EXPECT_TRUE(is_live(freed)) << "its index keeps it";
  const std::string log = log_of([] { DeferredTable::instance().drop_unseen(); });
  EXPECT_EQ(log, "");
  EXPECT_EQ(waiting(), 1u);
  EXPECT_FALSE(is_live(freed));
  EXPECT_TRUE(is_live(kept)) << "a state of this index can be seen";
  EXPECT_EQ(fused_in(log_of([&] { seen.sum(); })), 1u);
}

TEST_F(DeferralTest, WhatFailsBeforeItsKernelStaysAndRunsOnceLater) {
  const auto after = expected(3);
  Model model(3);
  model.step();
  fake_set_budget(10'000);  // an index needs 16'000
  EXPECT_EQ(code_of([&] { model.parameters[1].sum(); }), TP_OUT_OF_MEMORY);
  EXPECT_EQ(code_of([&] { model.parameters[1].sum(); }), TP_OUT_OF_MEMORY);
  EXPECT_EQ(waiting(), 3u);
  EXPECT_TRUE(at_rest());
  fake_set_budget(~0ull);
  const std::string log = log_of([&] {
    model.parameters[1].sum();
    model.parameters[1].sum();
  });
  EXPECT_EQ(fused_in(log), 1u);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(model.parameters[i], after[i])) << i;
}

TEST_F(DeferralTest, AStepThatFailsHalfWayIsCompletedByALaterUse) {
  const auto make = [] {
    Model model(5);
    for (auto* list : {&model.parameters, &model.gradients, &model.averages, &model.squares}) {
      (*list)[2] = at::ones({2000});  // needs more than the budget below
      (*list)[4] = at::ones({4});     // not paged, so nobody sees its use
    }
    return model;
  };
  const auto after = unpaged<std::vector<at::Tensor>>([&] {
    Model model = make();
    model.step();
    return model.parameters;
  });
  fake_set_defers(0);
  Model model = make();
  fake_set_budget(26'000);
  EXPECT_EQ(code_of([&] { model.step(); }), TP_OUT_OF_MEMORY);
  EXPECT_TRUE(at_rest());
  EXPECT_EQ(waiting(), 2u) << "the one that failed, and the one behind it";
  fake_set_budget(~0ull);
  for (size_t i = 0; i < 5; ++i) EXPECT_TRUE(at::equal(model.parameters[i], after[i])) << i;
  EXPECT_EQ(waiting(), 0u);
}

// What runs at once has begun when it fails: the indices that were to wait wait, or the step would be half done.
TEST_F(DeferralTest, AFailureOfWhatRunsAtOnceDefersTheOthersAllTheSame) {
  const auto make = [] {
    Model model(5);
    for (const size_t i : {1u, 3u}) {  // mixed: these cannot wait
      model.averages[i] = at::zeros({4});
      for (auto* list : {&model.parameters, &model.gradients, &model.squares}) (*list)[i] = (*list)[i].slice(0, 0, 4);
    }
    return model;
  };
  const auto after = unpaged<std::vector<at::Tensor>>([&] {
    Model model = make();
    model.step();
    return model.parameters;
  });
  static tp_engine_api failing;
  static int fused;
  fused = 0;
  failing = *engine_for_tests();
  failing.begin = [](tp_scope* scope, const tp_operator* op, const tp_access* accesses, size_t count) {
    if (std::string(op->name) == "aten::_fused_adamw_" && ++fused == 2) return static_cast<int32_t>(TP_STORAGE_ERROR);
    return engine_for_tests()->begin(scope, op, accesses, count);
  };
  ASSERT_EQ(tierpage_torch_attach(&failing, nullptr), TP_OK);
  Model model = make();
  EXPECT_EQ(code_of([&] { model.step(); }), TP_STORAGE_ERROR);
  EXPECT_EQ(fused, 3) << "index 3 was tried alone";
  EXPECT_EQ(waiting(), 3u);
  for (size_t i = 0; i < 5; ++i) EXPECT_TRUE(at::equal(model.parameters[i], after[i])) << i;
}

// An allocation or an operator that lacks room: what waits keeps gradients alive.
TEST_F(DeferralTest, NobodyFailsForWantOfRoomThatWhatWaitsTakes) {
  const auto after = expected(3);
  for (const bool inside : {false, true}) {
    Model model(3);
    const at::Tensor x = at::ones({1000});
    model.step();
    for (at::Tensor& gradient : model.gradients) gradient.reset();
    EXPECT_EQ(waiting(), 3u);
    fake_set_total(fake_live_bytes() + 1000);
    at::Tensor y;
    EXPECT_NO_THROW(y = inside ? x + 1 : at::empty({1000}));
    EXPECT_TRUE(is_paged(y));
    EXPECT_EQ(waiting(), 0u);
    EXPECT_EQ(code_of([] { at::empty({10'000}); }), TP_OUT_OF_MEMORY) << "nothing is left to run";
    fake_set_total(~0ull);
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(model.parameters[i], after[i])) << i;
  }
}

TEST_F(DeferralTest, WhatWaitsRunsBeforeAllTiersAreFull) {
  Model model(3);
  model.step();
  EXPECT_EQ(waiting(), 3u);
  at::Tensor x = at::empty({1000});
  EXPECT_EQ(waiting(), 3u);
  fake_set_defers(0);  // as the engine says once there is no room for what is kept
  x = at::empty({1000});
  EXPECT_EQ(waiting(), 0u);
}

TEST_F(DeferralTest, AnOperatorThatLacksRoomRunsWhatWaitsAndTriesAgain) {
  static tp_engine_api full;
  full = *engine_for_tests();
  full.begin = [](tp_scope* scope, const tp_operator* op, const tp_access* accesses, size_t count) {
    if (std::string(op->name) == "aten::neg_" && waiting() != 0) return static_cast<int32_t>(TP_STORAGE_FULL);
    return engine_for_tests()->begin(scope, op, accesses, count);
  };
  ASSERT_EQ(tierpage_torch_attach(&full, nullptr), TP_OK);
  const auto after = expected(3);
  ASSERT_EQ(tierpage_torch_attach(&full, nullptr), TP_OK);
  Model model(3);
  const at::Tensor x = at::ones({1000});
  model.step();
  EXPECT_NO_THROW(x.neg_());
  EXPECT_EQ(waiting(), 0u);
  EXPECT_TRUE(all_equal(x, -1));
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(model.parameters[i], after[i])) << i;
}

// The thread inside the operator holds pages for which the other may wait.
TEST_F(DeferralTest, WhoRunsAnIndexGivesWayToAThreadThatNeedsItInsideAnOperator) {
  static tp_engine_api stuck;
  static std::atomic<const tp_scope*> waits;
  static std::atomic<int> fused;
  waits = nullptr;
  fused = 0;
  stuck = *engine_for_tests();
  stuck.begin = [](tp_scope* scope, const tp_operator* op, const tp_access* accesses, size_t count) {
    if (std::string(op->name) != "aten::_fused_adamw_" || fused++ > 0) {
      return engine_for_tests()->begin(scope, op, accesses, count);
    }
    waits = scope;
    return static_cast<int32_t>(TP_WAIT);
  };
  stuck.wait = [](tp_scope*, uint32_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return static_cast<int32_t>(TP_WAIT);
  };
  stuck.cancel = [](tp_scope* scope) { EXPECT_EQ(waits.exchange(nullptr), scope); };
  const auto after = expected(2);
  ASSERT_EQ(tierpage_torch_attach(&stuck, nullptr), TP_OK);
  Model model(2);
  model.step();
  std::atomic<bool> right{false};
  std::thread other([&] { right = at::equal(model.parameters[0], after[0]); });
  while (waits == nullptr) std::this_thread::yield();
  {
    const OperatorFrame inside(thread_state(), &stuck, false);
    EXPECT_TRUE(at::equal(model.parameters[0], after[0]));
  }
  other.join();
  EXPECT_TRUE(right);
  EXPECT_EQ(fused, 2);
  EXPECT_EQ(waiting(), 1u);
  ASSERT_EQ(tierpage_torch_attach(engine_for_tests(), nullptr), TP_OK);
}

TEST_F(DeferralTest, OfTwoThreadsThatUseAnIndexOneRunsIt) {
  const auto after = expected(4, 1);
  for (int round = 0; round < 20; ++round) {
    Model model(4);
    model.step();
    fake_start_log();
    std::atomic<int> right{0};
    const auto use = [&] {
      for (size_t i = 0; i < 4; ++i) right += at::equal(model.parameters[i], after[i]);
    };
    std::thread other(use);
    use();
    other.join();
    EXPECT_EQ(right.load(), 8);
    EXPECT_EQ(fused_in(fake_log()), 4u);
    EXPECT_EQ(waiting(), 0u);
  }
}

TEST_F(DeferralTest, TwoThreadsThatDeferTheSameTensorsKeepTheTable) {
  Model model(3);
  const auto steps = [&] {
    for (int i = 0; i < 10; ++i) {
      at::_fused_adamw_(model.parameters, model.gradients, model.averages, model.squares, {}, model.steps, 0.1, 0.9,
                        0.999, 0.01, 1e-8, false, false);
    }
  };
  at::_foreach_add_(model.steps, 1);
  std::thread other(steps);
  steps();
  other.join();
  EXPECT_EQ(tierpage_torch_run_deferred(0), TP_OK);
  EXPECT_EQ(waiting(), 0u);
}

}  // namespace
}  // namespace tierpage
