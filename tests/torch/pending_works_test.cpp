// Operators whose work goes on when they have returned: what they use is kept until then.
#include "torch/pending_works.h"

#include <torch/custom_class.h>
#include <torch/library.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "torch/allocator.h"
#include "torch_test.h"

namespace tierpage {
namespace {

// Ends when the test says so.
class TestWork final : public c10d::Work {
 public:
  bool isCompleted() override {
    ++asked;
    if (fails) throw std::runtime_error("the peer is gone");
    return done;
  }
  std::atomic<bool> done{false}, fails{false};
  std::atomic<int> asked{0};
};

c10::intrusive_ptr<TestWork> next_work;

c10::intrusive_ptr<c10d::Work> reduce(const at::Tensor&) { return next_work; }
std::tuple<at::Tensor, c10::intrusive_ptr<c10d::Work>> gather(const at::Tensor& tensor) { return {tensor, next_work}; }

TORCH_LIBRARY(tierpage_works, library) {
  library.def("reduce(Tensor tensor) -> __torch__.torch.classes.c10d.Work");
  library.def("gather(Tensor(a!) tensor) -> (Tensor(a!), __torch__.torch.classes.c10d.Work)");
  library.impl("reduce", torch::dispatch(c10::DispatchKey::CPU, &reduce));
  library.impl("gather", torch::dispatch(c10::DispatchKey::CPU, &gather));
}

class PendingWorksTest : public TorchTest {
 protected:
  void SetUp() override {
    TorchTest::SetUp();
    next_work = c10::make_intrusive<TestWork>();
  }
  void TearDown() override {
    next_work.reset();
    (void)let_go_of_ended_works();
    EXPECT_FALSE(works_pending());
    TorchTest::TearDown();
  }
  static c10::intrusive_ptr<c10d::Work> call(const char* name, const at::Tensor& tensor) {
    c10::Stack stack{tensor};
    c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(stack);
    return stack.back().toCustomClass<c10d::Work>();
  }
  static size_t count(const std::string& log, const std::string& what) {
    size_t found = 0;
    for (size_t at = log.find(what); at != std::string::npos; at = log.find(what, at + 1)) ++found;
    return found;
  }
};

TEST_F(PendingWorksTest, WhatAnOperatorUsesIsKeptUntilItsWorkHasCompleted) {
  const at::Tensor tensor = matrix();
  for (const char* name : {"tierpage_works::reduce", "tierpage_works::gather"}) {
    c10::intrusive_ptr<c10d::Work> work;
    std::string log = log_of([&] { work = call(name, tensor); });
    EXPECT_EQ(count(log, "keep 1\n"), 1u) << name << ": " << log;
    log = log_of([&] { (void)tensor.add(1); });
    EXPECT_EQ(count(log, "let go"), 0u) << log;
    next_work->done = true;
    log = log_of([&] { (void)tensor.add(1); });
    EXPECT_EQ(count(log, "let go\n"), 1u) << log;
    next_work->done = false;
  }
}

TEST_F(PendingWorksTest, AWorkThatHasCompletedAtOnceKeepsNothing) {
  next_work->done = true;
  const std::string log = log_of([&] { (void)call("tierpage_works::reduce", matrix()); });
  EXPECT_EQ(count(log, "keep"), 0u) << log;
}

TEST_F(PendingWorksTest, AWorkThatNobodyHoldsAnyMoreOrThatHasFailedIsOver) {
  const at::Tensor tensor = matrix();
  (void)call("tierpage_works::reduce", tensor);
  next_work = c10::make_intrusive<TestWork>();  // the only reference
  EXPECT_FALSE(let_go_of_ended_works());
  (void)call("tierpage_works::reduce", tensor);
  EXPECT_TRUE(let_go_of_ended_works());
  next_work->fails = true;
  EXPECT_FALSE(let_go_of_ended_works());
}

TEST_F(PendingWorksTest, WhoWaitsForPagesAsksTheWorks) {
  const at::Tensor tensor = matrix();
  (void)call("tierpage_works::reduce", tensor);
  const int asked_before = next_work->asked;
  fake_set_wait_slices(3);
  (void)tensor.add(1);
  fake_set_wait_slices(0);
  EXPECT_GE(next_work->asked, asked_before + 3);
}

// Its regions stay for good then, and no operator would ask any more.
TEST_F(PendingWorksTest, WherePagingEndsNothingIsKeptForAWork) {
  const at::Tensor tensor = matrix();
  (void)call("tierpage_works::reduce", tensor);
  EXPECT_TRUE(works_pending());
  const std::string log = log_of([] { tierpage_torch_detach(); });
  EXPECT_EQ(count(log, "let go\n"), 1u) << log;
  EXPECT_FALSE(works_pending());
  tierpage_torch_attach(engine_for_tests(), nullptr);
}

// Outside operators nobody else would.
TEST_F(PendingWorksTest, WhoAllocatesAsksTheWorks) {
  (void)call("tierpage_works::reduce", matrix());
  next_work->done = true;
  const std::string log = log_of([] { delete_region(allocate_region(engine_for_tests(), 4096)); });
  EXPECT_EQ(count(log, "let go\n"), 1u) << log;
}

// The engine does not wait for messages, and may fail a request before anybody asks whether they have ended.
TEST_F(PendingWorksTest, NobodyFailsForWantOfRoomThatAnEndedWorkHas) {
  (void)call("tierpage_works::reduce", matrix());
  int asked = 0;
  const auto ask = [&] {
    ++asked;
    return works_pending() ? TP_OUT_OF_MEMORY : TP_OK;
  };
  EXPECT_EQ(settled_with_room(thread_state(), engine_for_tests(), ask), TP_OUT_OF_MEMORY);
  EXPECT_EQ(asked, 1);
  next_work->done = true;
  EXPECT_EQ(settled_with_room(thread_state(), engine_for_tests(), ask), TP_OK);
  EXPECT_EQ(asked, 3);
}

// On a GPU; the batch has a work, which no operator returns.
TEST_F(PendingWorksTest, ABatchIsLetGoOfWhenItHasBeenQueued) {
  tp_engine_api on_gpu = *engine_for_tests();
  on_gpu.device_type = 1;
  ThreadState& state = thread_state();
  use_engine(state, &on_gpu);
  const std::string log = log_of([&] {
    for (int i = 0; i < 3; ++i) keep_until_done(state, {}, true, {on_gpu.range_base + 4096});
    EXPECT_EQ(state.batch.size(), 3u);
    tierpage_torch_end_batch();
  });
  EXPECT_EQ(count(log, "let go\n"), 3u) << log;
  EXPECT_TRUE(state.batch.empty());
  use_engine(state, engine_for_tests());
}

TEST_F(PendingWorksTest, WithoutAWorkNothingIsKeptOnTheCpu) {
  next_work.reset();
  const std::string log = log_of([&] { (void)call("tierpage_works::reduce", matrix()); });
  EXPECT_EQ(count(log, "keep"), 0u) << log;
}

}  // namespace
}  // namespace tierpage
