// Missed accesses while others install, remove and chain handlers of SIGSEGV; and what is not ours still ends the
// process.
#include <setjmp.h>
#include <signal.h>
#include <unistd.h>

#include "engine/signal_chain.h"
#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

using ::testing::KilledBySignal;

struct sigaction g_before;  // what a reporter found there
std::atomic<int> g_reports{0};
sigjmp_buf g_jump;

void install(void (*handler)(int, siginfo_t*, void*)) {
  struct sigaction action = {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &g_before);
}

void report() {
  if (++g_reports > 3) _exit(99);  // round in circles
  (void)!write(STDERR_FILENO, "reported\n", 9);
}

// As Python's faulthandler: takes itself away and sends the signal again.
void report_and_send_again(int number, siginfo_t*, void*) {
  sigaction(number, &g_before, nullptr);
  report();
  raise(number);
}

// As most crash reporters: calls whoever was there before.
void report_and_call(int number, siginfo_t* info, void* context) {
  report();
  if ((g_before.sa_flags & SA_SIGINFO) != 0) {
    g_before.sa_sigaction(number, info, context);
  } else {
    sigaction(number, &g_before, nullptr);
  }
}

// As libraries that only want to know whether memory is there.
void jump_out(int, siginfo_t*, void*) { siglongjmp(g_jump, 1); }

void access_nobodys_memory() { *reinterpret_cast<volatile int*>(uintptr_t{4096}) = 1; }

class SignalChain : public EngineTest {
 protected:
  void SetUp() override {
    ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
    g_reports = 0;
    signal(SIGSEGV, SIG_DFL);
  }
  void TearDown() override { signal(SIGSEGV, SIG_DFL); }

  // With pages that were evicted before whatever the test does to the handlers.
  void expect_served(const std::function<void()>& change) {
    Engine engine(small_options());
    Caller caller(engine);
    const Region region = caller.make(128 * kKiB, 1);
    engine.evict({region.address});
    change();
    EXPECT_TRUE(intact(region));
    EXPECT_EQ(engine->reports().missed_accesses(), 1u);
    caller.free(region);
  }
};

TEST_F(SignalChain, AHandlerThatCameBeforeIsLeftBelow) {
  install(report_and_send_again);
  install_fault_handler();
  expect_served([] {});
  EXPECT_EQ(g_reports, 0);
}

TEST_F(SignalChain, OneThatCameLaterAndSendsTheSignalAgain) {
  install_fault_handler();
  expect_served([] { install(report_and_send_again); });
}

TEST_F(SignalChain, OneThatCameLaterAndCallsItsPredecessor) {
  install_fault_handler();
  expect_served([] { install(report_and_call); });
}

TEST_F(SignalChain, OursComesBackAboveALaterOne) {
  install_fault_handler();
  expect_served([] {
    install(report_and_send_again);
    stay_on_top();
  });
  EXPECT_EQ(g_reports, 0);
}

TEST_F(SignalChain, OursComesBackWhenAnEarlierOneTookItAwayWithItself) {
  install(report_and_send_again);
  const struct sigaction before = g_before;
  install_fault_handler();
  expect_served([&] {
    sigaction(SIGSEGV, &before, nullptr);
    stay_on_top();
  });
}

TEST_F(SignalChain, ThePagerPutsOursBackBeforePagesGo) {
  install_fault_handler();
  Engine engine(small_options());
  Caller caller(engine);
  const Region region = caller.make(128 * kKiB, 1);
  install(report_and_send_again);
  engine.evict({region.address});
  EXPECT_TRUE(intact(region));
  EXPECT_EQ(g_reports, 0);
}

TEST_F(SignalChain, WhoeverTakesAPointerPutsOursBack) {
  install_fault_handler();
  Engine engine(small_options());
  Caller caller(engine);
  const Region region = caller.make(64 * kKiB, 1);
  install(report_and_send_again);
  ASSERT_EQ(caller.touch(region, 1), TP_OK);
  struct sigaction now = {};
  sigaction(SIGSEGV, nullptr, &now);
  EXPECT_NE(now.sa_sigaction, report_and_send_again);
}

TEST_F(SignalChain, WhatIsNotOursEndsTheProcessAndIsReportedOnce) {
  for (auto* const reporter : {report_and_send_again, report_and_call}) {
    EXPECT_EXIT(
        {
          install(reporter);
          install_fault_handler();
          access_nobodys_memory();
        },
        KilledBySignal(SIGSEGV), "^reported\n$");
  }
}

TEST_F(SignalChain, NothingGoesInCirclesBetweenTwoThatHaveEachOtherForPredecessor) {
  for (auto* const reporter : {report_and_send_again, report_and_call}) {
    EXPECT_EXIT(
        {
          install_fault_handler();
          install(reporter);
          stay_on_top();
          access_nobodys_memory();
        },
        KilledBySignal(SIGSEGV), "reported\n");
  }
}

TEST_F(SignalChain, ASignalThatIsOnlySentIsNoMissedAccess) {
  EXPECT_EXIT(
      {
        install_fault_handler();
        expect_served([] {});
        raise(SIGSEGV);
        _exit(1);
      },
      KilledBySignal(SIGSEGV), "");
}

TEST_F(SignalChain, OneThatNeverReturnsIsCalledEachTime) {
  install(jump_out);
  install_fault_handler();
  static int times;  // a local one may not survive the jump
  for (times = 0; times < 5; ++times) {
    if (sigsetjmp(g_jump, 1) == 0) {
      access_nobodys_memory();
      FAIL();
    }
  }
  expect_served([] {});
}

// faulthandler makes an alternate stack of about this size, and ours runs there too.
TEST_F(SignalChain, SmallAlternateStackIsEnough) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "sanitizers make frames larger";
#endif
  install_fault_handler();
  constexpr size_t kBytes = 16 * kKiB;
  std::vector<std::byte> memory(kBytes, std::byte{0xa5});
  stack_t stack = {};
  stack.ss_sp = memory.data();
  stack.ss_size = kBytes;
  stack_t before = {};
  ASSERT_EQ(sigaltstack(&stack, &before), 0);
  expect_served([] {});
  ASSERT_EQ(sigaltstack(&before, nullptr), 0);
  const auto used = std::find_if(memory.begin(), memory.end(), [](std::byte b) { return b != std::byte{0xa5}; });
  const auto left = static_cast<size_t>(used - memory.begin());
  EXPECT_GT(left, kBytes / 4);
}

}  // namespace
}  // namespace tierpage::testing
