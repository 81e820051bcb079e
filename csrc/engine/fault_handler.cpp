// Accesses that no operator announced, on the host device: a SIGSEGV inside a reserved range becomes a fetch.
//
// On the host device an evicted page is PROT_NONE, and a clean one can only be read. Code that uses tensors through raw
// pointers (numpy, tolist, a C extension) then faults here: the region is brought up and kept, because the pointer may
// be used again, until somebody needs the room (core/pager/guesses.h); and the instruction runs again. Everything else
// goes to the handler that was there before (signal_chain.h).
//
// Why locks are taken in a signal handler: the signal is synchronous, raised by one load or store into the range. The
// engine itself never touches the range while it holds its mutex or is inside malloc; a fault of the pager thread is a
// defect and is passed on. So the faulting thread holds none of the locks that are taken here.
// System calls on evicted memory get EFAULT and do not come here (docs/limits.md).
#include <signal.h>
#include <unistd.h>

#include <cerrno>

#include "engine/runtime.h"
#include "engine/signal_chain.h"

namespace tierpage {
namespace {

constexpr uint32_t kKeepOperators = 64;  // of any thread; whoever comes again later is served again

void say(const std::string& text) {
  const std::string line = "tierpage: " + text + "\n";
  (void)!write(STDERR_FILENO, line.data(), line.size());
}

void on_fault(int number, siginfo_t* info, void* context) {
  const int interrupted_errno = errno;
  const uint64_t address = faulting_address(info, context);
  const bool ours = address != 0 && !t_pager_thread && !g_runtimes.forked();
  Runtime* runtime = ours ? g_runtimes.of_address(address) : nullptr;
  const AccessMode mode = faulted_writing(context) ? AccessMode::kWrite : AccessMode::kRead;
  const bool resolved = runtime != nullptr && runtime->resolve_missed_access(address, mode);
  errno = interrupted_errno;
  if (!resolved) pass_on(number, info, context);
}

}  // namespace

void install_fault_handler() { put_on_top(on_fault); }

bool Runtime::resolve_missed_access(uint64_t address, AccessMode mode) {
  UniqueLock lock(core_.mutex());
  const RegionId region = core_.region_of_locked(address);
  if (!region.valid()) return false;
  // A pointer that was taken and whose memory had to go meanwhile was announced.
  if (!core_->guesses().expects(region)) {
    missed_address_.store(address - api_.range_base);
    missed_accesses_.fetch_add(1);
  }
  SlotId slot;
  std::vector<Use> uses;
  Status status = core_.refusal_locked();
  if (status.ok()) {
    status = core_.events_locked([&] {
      core_->mark_seen(region);
      uses.push_back({region, 0, core_->memory().region(region).bytes_asked - 1, mode});
      slot = core_->add_slot();
    });
  }
  const Touch touch{region, SlotId::none(), kKeepOperators, mode, false};
  if (status.ok()) status = fetch_blocking(lock, slot, uses, "a raw access", &touch);
  if (status.code != StatusCode::kPagerDead && slot.valid()) {
    const Status ended = core_.events_locked([&] { core_->remove_slot(slot); });
    if (status.ok()) status = ended;
  }
  core_.hand_over_locked();
  if (!status.ok()) say("a raw access to a paged tensor cannot be served, the process will end: " + status.message);
  return status.ok();
}

}  // namespace tierpage
