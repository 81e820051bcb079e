#include "engine/signal_chain.h"

#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <list>
#include <utility>

namespace tierpage {
namespace {

// Of those that were found there. Never deleted, because a handler may be reading one.
std::atomic<const struct sigaction*> g_previous{nullptr};
std::atomic<FaultHandler> g_ours{nullptr};
std::atomic_flag g_changing;  // not a mutex: a child that is forked meanwhile only never changes it again

bool same(const struct sigaction& a, const struct sigaction& b) {
  return a.sa_handler == b.sa_handler && a.sa_flags == b.sa_flags;
}

bool is(const struct sigaction& action, FaultHandler handler) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == handler;
}

// Under g_changing. A program that comes and goes all the time must not fill the memory.
void remember(const struct sigaction& previous) {
  static auto* known = new std::list<struct sigaction>;
  for (const struct sigaction& one : *known) {
    if (same(one, previous)) return g_previous.store(&one);
  }
  g_previous.store(&known->emplace_back(previous));
}

// What the kernel wrote down at this thread's last fault; a signal that is sent later changes nothing of it.
uint64_t last_fault_of(const void* context) {
  const auto& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  constexpr long long kPageFault = 14;
  return machine.gregs[REG_TRAPNO] == kPageFault ? static_cast<uint64_t>(machine.gregs[REG_CR2]) : 0;
#elif defined(__aarch64__)
  return machine.fault_address;
#else
  (void)machine;
  return 0;
#endif
}

// A question for which the kernel reads there, and which changes nothing: with memory it answers that the first
// argument is none of its words.
bool readable(uint64_t address) {
  constexpr uint64_t kMaskBytes = 8;
  return syscall(SYS_rt_sigprocmask, ~0, address & ~(kMaskBytes - 1), nullptr, kMaskBytes) == 0 || errno != EFAULT;
}

thread_local uint64_t t_last_fault = 0;  // of this thread that reached us, by whichever way
thread_local bool t_last_fault_wrote = false;

struct Passing {  // of this thread, to a handler before ours; it stays so where that one never returns
  const siginfo_t* info = nullptr;
  const char* frame = nullptr;
};
thread_local Passing t_passing;
thread_local uint64_t t_passed_on = 0;  // address of the fault that was passed on last

// Whom we passed it to has ours for its own predecessor, and has handed it back: by a call, or by sending it again,
// which may arrive when it has returned.
bool came_back(const siginfo_t* info, const void* context, const char* frame) {
  const bool passing = t_passing.info != nullptr;
  if (info->si_code <= 0) return passing || (t_passed_on != 0 && t_passed_on == last_fault_of(context));
  return passing && info == t_passing.info && frame < t_passing.frame;
}

}  // namespace

void put_on_top(FaultHandler handler) {
  g_ours.store(handler, std::memory_order_relaxed);
  stay_on_top();
}

void stay_on_top() {
  const FaultHandler handler = g_ours.load(std::memory_order_relaxed);
  if (handler == nullptr) return;
  struct sigaction now = {};
  if (sigaction(SIGSEGV, nullptr, &now) != 0 || is(now, handler) || g_changing.test_and_set()) return;
  struct sigaction ours = {};
  ours.sa_sigaction = handler;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  remember(now);  // before ours may be called
  struct sigaction replaced = {};
  if (sigaction(SIGSEGV, &ours, &replaced) == 0 && !is(replaced, handler) && !same(replaced, now)) remember(replaced);
  g_changing.clear();
}

void pass_on(int number, siginfo_t* info, void* context) {
  const struct sigaction* const previous = g_previous.load();
  const auto* const frame = static_cast<const char*>(__builtin_frame_address(0));
  const bool there = previous != nullptr && previous->sa_handler != SIG_DFL && previous->sa_handler != SIG_IGN;
  if (!there || came_back(info, context, frame)) {
    // Default: let the instruction fault again without us; a signal that was only sent would not come again by itself.
    signal(number, SIG_DFL);
    if (info->si_code <= 0) raise(number);
    return;
  }
  t_passing = {info, frame};
  t_passed_on = info->si_code > 0 ? reinterpret_cast<uint64_t>(info->si_addr) : 0;
  if ((previous->sa_flags & SA_SIGINFO) != 0) {
    previous->sa_sigaction(number, info, context);
  } else {
    previous->sa_handler(number);
  }
  t_passing = {};
}

uint64_t faulting_address(const siginfo_t* info, const void* context) {
  const bool wrote = std::exchange(t_last_fault_wrote, faulted_writing(context));
  if (info->si_code > 0) return t_last_fault = reinterpret_cast<uint64_t>(info->si_addr);
  const bool sent = info->si_code == SI_TKILL || info->si_code == SI_USER || info->si_code == SI_QUEUE;
  if (!sent || info->si_pid != getpid()) return 0;
  const uint64_t address = last_fault_of(context);
  // An old fault that was served: this time somebody only wants the process to end.
  if (address == t_last_fault && wrote == t_last_fault_wrote && readable(address)) return 0;
  return t_last_fault = address;
}

bool faulted_writing([[maybe_unused]] const void* context) {
#if defined(__x86_64__)
  constexpr greg_t kWrites = 2;  // of a page fault's error code
  return (static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & kWrites) != 0;
#else
  return true;
#endif
}

}  // namespace tierpage
