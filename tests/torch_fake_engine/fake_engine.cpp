// A stand-in for the engine: one PROT_NONE range whose regions are accessible only while a scope pins them, and
// writable only if a write was announced. An access that the interceptor missed is a segmentation fault.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>

#include "fake_engine.h"
#include "locks/lock_rank.h"

struct tp_scope {
  bool open = false;
  uint64_t closes = 0;
  std::unordered_map<uint64_t, uint32_t> pinned;  // region base -> mode
  std::string message;
  int64_t slices_left = 0;
  uint64_t allocated = 0;
};

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kRangeBytes = 16ull << 30;

struct Region {
  uint64_t bytes = 0;
  uint32_t readers = 0;
  uint32_t writers = 0;
  bool seen = false;
  const tp_scope* keeper = nullptr;
  uint64_t keep_until = 0;
  int32_t views = 0;
};

std::mutex mutex;
std::map<uint64_t, Region> regions;
tp_engine_api table;
uint64_t next_address = 0;
uint64_t run_bytes_max = ~0ull;
uint64_t budget = ~0ull;
uint64_t total_max = ~0ull;
int64_t wait_slices = 0;
int32_t defers = 0;
int32_t refuses = 0;
uint64_t begins = 0;
uint64_t evictions = 0;
uint64_t largest_scope = 0;
int owner_process = 0;
const char* volatile latest_operator = "none";
std::string announcements;                   // since fake_start_log
std::map<uint64_t, size_t> allocated_since;  // first bytes of the regions made since then, and their numbers
struct sigaction previous_handler;

uint64_t rounded(uint64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

void protect(uint64_t base, const Region& region) {
  const bool kept = !region.seen || region.keeper != nullptr;
  int access = PROT_NONE;
  if (region.readers > 0) access = PROT_READ;
  if (region.writers > 0 || kept) access = PROT_READ | PROT_WRITE;
  if (access == PROT_NONE) ++evictions;
  mprotect(reinterpret_cast<void*>(base), rounded(region.bytes), access);
}

std::map<uint64_t, Region>::iterator region_at(uint64_t address) {
  auto found = regions.upper_bound(address);
  if (found == regions.begin()) return regions.end();
  --found;
  return address < found->first + found->second.bytes ? found : regions.end();
}

// The same whenever the same operators run: regions made meanwhile by their number.
void log_address(uint64_t address) {
  const auto region = region_at(address);
  const auto found = region == regions.end() ? allocated_since.end() : allocated_since.find(region->first);
  announcements += ' ';
  if (found == allocated_since.end()) {
    announcements += std::to_string(address - table.range_base);
  } else {
    announcements += "new" + std::to_string(found->second) + "+" + std::to_string(address - found->first);
  }
}

void pin(tp_scope* scope, uint64_t base, Region& region, uint32_t mode) {
  uint32_t& held = scope->pinned[base];
  if ((mode & TP_WRITE) != 0 && (held & TP_WRITE) == 0) ++region.writers;
  if (held == 0) ++region.readers;
  held |= mode;
  protect(base, region);
}

uint64_t pinned_bytes(const tp_scope* scope) {
  uint64_t total = 0;
  for (const auto& [base, mode] : scope->pinned) total += regions.count(base) != 0 ? regions[base].bytes : 0;
  if (total > largest_scope) largest_scope = total;
  return total;
}

uint64_t live_bytes() {
  uint64_t total = 0;
  for (const auto& [base, region] : regions) total += region.bytes;
  return total;
}

int32_t grant(tp_scope* scope) {
  if (pinned_bytes(scope) > budget) {
    scope->message = "tierpage fake: out of memory. The operator needs more than the budget.";
    return TP_OUT_OF_MEMORY;
  }
  scope->slices_left = wait_slices;
  return wait_slices > 0 ? TP_WAIT : TP_OK;
}

// A call from the torch library, which holds none of its own locks then: the engine may wait for other threads.
class Entry {
 public:
  Entry() : lock_(mutex) {
    if (tierpage::t_held_locks.none()) return;
    std::fprintf(stderr, "the engine is called with a lock held\n");
    std::abort();
  }

 private:
  const std::lock_guard<std::mutex> lock_;
};

tp_scope* scope_create() { return new tp_scope; }
void scope_destroy(tp_scope* scope) { delete scope; }
void scope_open(tp_scope* scope, uint64_t) {
  const Entry entry;
  scope->open = true;
  announcements += "open\n";
}

int32_t begin(tp_scope* scope, const tp_operator* op, const tp_access* accesses, size_t count) {
  const Entry entry;
  ++begins;
  latest_operator = op->name;
  announcements += "begin " + std::string(op->name) + " " + std::to_string(op->hash);
  for (size_t i = 0; i < count; ++i) {
    log_address(accesses[i].address);
    announcements += "," + std::to_string(accesses[i].bytes) + "," + std::to_string(accesses[i].mode);
  }
  announcements += "\n";
  if (!scope->open) {
    scope->message = std::string("begin without an open scope: ") + op->name;
    return TP_INTERNAL;
  }
  if (refuses != 0) {
    scope->message = std::string("refused: ") + op->name;
    return TP_UNAVAILABLE;
  }
  for (size_t i = 0; i < count; ++i) {
    const auto found = region_at(accesses[i].address);
    if (found == regions.end() ||
        accesses[i].address + accesses[i].bytes > found->first + rounded(found->second.bytes)) {
      scope->message = std::string("access outside any region: ") + op->name;
      return TP_INTERNAL;
    }
    found->second.seen = true;
    pin(scope, found->first, found->second, accesses[i].mode);
  }
  return grant(scope);
}

int32_t wait(tp_scope* scope, uint32_t timeout_ms) {
  std::this_thread::sleep_for(std::chrono::milliseconds(timeout_ms < 5 ? timeout_ms : 5));
  return --scope->slices_left > 0 ? TP_WAIT : TP_OK;
}

void cancel(tp_scope* scope) { scope->slices_left = 0; }

void seen(tp_scope*, const uint64_t* addresses, size_t count) {
  const Entry entry;
  announcements += "seen";
  for (size_t i = 0; i < count; ++i) log_address(addresses[i]);
  announcements += "\n";
  for (size_t i = 0; i < count; ++i) {
    const auto found = region_at(addresses[i]);
    if (found != regions.end()) found->second.seen = true;
  }
}

int32_t scope_close(tp_scope* scope, uint64_t) {
  const Entry entry;
  if (!scope->open) return TP_INTERNAL;
  scope->open = false;
  announcements += "close\n";
  ++scope->closes;
  for (const auto& [base, mode] : scope->pinned) {
    const auto found = regions.find(base);
    if (found == regions.end()) continue;
    if ((mode & TP_WRITE) != 0) --found->second.writers;
    --found->second.readers;
    protect(base, found->second);
  }
  scope->pinned.clear();
  for (auto& [base, region] : regions) {
    if (region.keeper != scope || region.keep_until > scope->closes) continue;
    region.keeper = nullptr;
    protect(base, region);
  }
  return TP_OK;
}

const char* error_message(tp_scope* scope) { return scope->message.c_str(); }

int32_t forked() { return getpid() != owner_process ? 1 : 0; }
int32_t wants(uint64_t bytes) { return bytes >= table.min_paged_bytes && forked() == 0 ? 1 : 0; }

int32_t allocate(tp_scope* scope, uint64_t bytes, uint64_t, uint64_t place, uint64_t* address) {
  const Entry entry;
  if ((scope->open && pinned_bytes(scope) + bytes > budget) || bytes > total_max || live_bytes() > total_max - bytes) {
    scope->message = "tierpage fake: out of memory. The allocation exceeds the budget.";
    return TP_OUT_OF_MEMORY;
  }
  const uint64_t base = next_address;
  next_address += rounded(bytes) + kPage;  // a page between regions catches overruns
  Region& region = regions[base];
  region.bytes = bytes;
  allocated_since.emplace(base, allocated_since.size());
  announcements += "allocate " + std::to_string(bytes);
  if (place != TP_NO_SOURCE) announcements += " from " + std::to_string(place);
  announcements += "\n";
  protect(base, region);
  if (scope->open) pin(scope, base, region, TP_READ | TP_WRITE);
  *address = scope->allocated = base;
  scope->slices_left = wait_slices;
  return wait_slices > 0 ? TP_WAIT : TP_OK;
}

uint64_t allocate_result(tp_scope* scope) { return scope->allocated; }

void deallocate(uint64_t address) {
  const Entry entry;
  const auto found = regions.find(address);
  if (found == regions.end()) return;
  madvise(reinterpret_cast<void*>(address), rounded(found->second.bytes), MADV_DONTNEED);
  mprotect(reinterpret_cast<void*>(address), rounded(found->second.bytes), PROT_NONE);
  regions.erase(found);
}

void record_stream(uint64_t, uint64_t) {}

uint64_t region_bytes(uint64_t address, uint64_t* base) {
  const Entry entry;
  const auto found = region_at(address);
  if (found == regions.end()) return 0;
  *base = found->first;
  return found->second.bytes;
}

int32_t touch(tp_scope* scope, uint64_t address, uint32_t keep) {
  const Entry entry;
  const auto found = region_at(address);
  if (found == regions.end()) return TP_INVALID_ARGUMENT;
  found->second.keeper = scope;
  found->second.keep_until = keep == 0 ? ~0ull : scope->closes + keep;
  protect(found->first, found->second);
  return grant(scope);
}

int32_t scope_holds(tp_scope* scope, uint64_t address) {
  const Entry entry;
  const auto found = region_at(address);
  return found != regions.end() && scope->open && scope->pinned.count(found->first) != 0 ? 1 : 0;
}

uint64_t list_run_bytes_max() { return run_bytes_max; }
constexpr int32_t wants_times = 1;
void launching(tp_scope*, uint64_t) {
  const Entry entry;
  announcements += "launching\n";
}
int32_t may_defer(uint64_t) { return defers; }
int32_t held(const uint64_t* addresses, size_t count) {
  const Entry entry;
  return std::any_of(addresses, addresses + count, [](uint64_t address) {
    const auto found = region_at(address);
    return found == regions.end() || found->second.readers > 0 || found->second.writers > 0;
  });
}
void foreign_stream(uint64_t) {}
int32_t launch_begin(tp_scope*, const tp_access*, size_t, uint64_t) { return TP_OK; }
void launch_end(tp_scope*, uint64_t) {}
int32_t watch_launches = 0;
int32_t captures_noted = 0;
void set_watch_hook(void (*)()) {}
void note_capture(tp_runtime*, int32_t change) { captures_noted += change; }
int32_t own_thread() { return 0; }
std::set<uint64_t> kept_handles;
uint64_t next_handle = 1;
uint64_t keep_regions(const uint64_t*, size_t count, int32_t ends_by_itself) {
  const Entry entry;
  announcements += "keep " + std::to_string(count) + (ends_by_itself != 0 ? "\n" : " for a message\n");
  kept_handles.insert(next_handle);
  return next_handle++;
}
void let_go(uint64_t, uint64_t handle) {
  const Entry entry;
  announcements += kept_handles.erase(handle) == 1 ? "let go\n" : "let go of nothing\n";
}
void set_wait_hook(void (*)()) {}
uint64_t room_kept = 0;
uint64_t room_max = 0;
uint64_t make_room(tp_runtime*, uint64_t bytes) {
  if (bytes > room_max) return 0;
  room_kept += bytes;
  return bytes;
}
int64_t room_waits = 0;  // slices until what is asked for can be made
int32_t await_room(tp_runtime* runtime, tp_scope*, uint64_t bytes, uint32_t) {
  if (room_waits == 0) return TP_OUT_OF_MEMORY;
  if (--room_waits > 0) return TP_WAIT;
  room_max = bytes;
  return make_room(runtime, bytes) != 0 ? TP_OK : TP_OUT_OF_MEMORY;
}
void room_settled(tp_runtime*, uint64_t bytes, uint64_t) { room_kept -= bytes; }
int32_t allow_peer(int32_t) { return TP_OK; }
void view(uint64_t address, int32_t change) {
  const Entry entry;
  const auto found = region_at(address);
  if (found != regions.end()) found->second.views += change;
}

// Says which operator missed what, then lets Python's faulthandler print the stack.
void explain_fault(int signal_number, siginfo_t* info, void*) {
  const auto found = region_at(reinterpret_cast<uint64_t>(info->si_addr));
  std::fprintf(stderr, "fault at %p, latest operator %s\n", info->si_addr, latest_operator);
  if (found != regions.end()) {
    std::fprintf(stderr, "  region of %lu bytes, %u readers, %u writers: %s\n", found->second.bytes,
                 found->second.readers, found->second.writers,
                 found->second.readers > 0 ? "an unannounced write" : "an unannounced access");
  }
  sigaction(signal_number, &previous_handler, nullptr);
}

}  // namespace

extern "C" const tp_engine_api* fake_engine(uint64_t min_paged_bytes) {
  void* base = mmap(nullptr, kRangeBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  next_address = reinterpret_cast<uint64_t>(base);
  owner_process = getpid();
  struct sigaction action = {};
  action.sa_sigaction = explain_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &previous_handler);
  table = tp_engine_api{TIERPAGE_ENGINE_API_VERSION,
                        sizeof(tp_engine_api),
                        next_address,
                        kRangeBytes,
                        min_paged_bytes,
                        1,
                        0,
                        0,
                        nullptr,
                        scope_create,
                        scope_destroy,
                        scope_open,
                        begin,
                        wait,
                        cancel,
                        seen,
                        scope_close,
                        error_message,
                        wants,
                        allocate,
                        allocate_result,
                        deallocate,
                        record_stream,
                        region_bytes,
                        touch,
                        scope_holds,
                        list_run_bytes_max,
                        may_defer,
                        held,
                        make_room,
                        await_room,
                        &wants_times,
                        launching,
                        forked,
                        foreign_stream,
                        room_settled,
                        allow_peer,
                        {keep_regions, let_go, set_wait_hook, view},
                        {launch_begin, launch_end, &watch_launches, set_watch_hook, note_capture, own_thread}};
  return &table;
}

extern "C" void fake_set_run_bytes_max(uint64_t bytes) { run_bytes_max = bytes; }
extern "C" int32_t fake_views(uint64_t address) {
  const Entry entry;
  const auto found = region_at(address);
  return found == regions.end() ? -1 : found->second.views;
}
extern "C" void fake_set_budget(uint64_t bytes) { budget = bytes; }
extern "C" void fake_set_total(uint64_t bytes) { total_max = bytes; }
extern "C" uint64_t fake_live_bytes() {
  const std::lock_guard<std::mutex> lock(mutex);
  return live_bytes();
}
extern "C" void fake_set_room(uint64_t bytes) { room_max = bytes; }
extern "C" void fake_set_room_waits(int64_t slices) { room_waits = slices; }
extern "C" int32_t fake_captures_noted() { return captures_noted; }
extern "C" uint64_t fake_room_kept() { return room_kept; }
extern "C" void fake_set_defers(int32_t yes) { defers = yes; }
extern "C" void fake_set_refuses(int32_t yes) { refuses = yes; }
extern "C" void fake_set_wait_slices(int64_t slices) { wait_slices = slices; }
extern "C" void fake_start_log() {
  const std::lock_guard<std::mutex> lock(mutex);
  announcements.clear();
  allocated_since.clear();
}
extern "C" const char* fake_log() { return announcements.c_str(); }
extern "C" uint64_t fake_begins() { return begins; }
extern "C" uint64_t fake_evictions() { return evictions; }
extern "C" uint64_t fake_take_largest_scope() {
  const uint64_t bytes = largest_scope;
  largest_scope = 0;
  return bytes;
}
