// The attached engine, the scope of each thread, and the protocol of engine_api.h: open, begin, wait.
//
// Which engine? Another may be attached while operators run, and tensors outlive theirs. There are three answers:
//  - a thread that runs an operator goes on with the engine with which the outermost one began (ThreadState::engine),
//    for the scope that is open is that engine's;
//  - otherwise it is the attached one: engine_for() gives one or the other;
//  - memory is freed, and asked about by its address alone, at the engine in whose range it lies: engine_of().
#pragma once

#include <c10/core/StorageImpl.h>
#include <c10/core/Stream.h>
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "engine/engine_api.h"

namespace tierpage {

enum Counter : int32_t {
  kOperatorsSeen = 0,
  kOperatorsPaged = 1,
  kListOperatorsSplit = 2,
  kRawTouches = 3,
  kIndicesDeferred = 4,
  kLaunchesGuarded = 5,
  kCounterCount = 6
};

// Ends the wait of an operator whose pages another thread needs more, or that has waited for long enough.
struct GaveWay {};
struct GiveWay;

// What one thread knows. Only its own thread writes it; others read the counters.
struct ThreadState {
  const tp_engine_api* engine = nullptr;  // whose `scope` is; changes only between operators (see above)
  tp_scope* scope = nullptr;              // made on first use
  int32_t depth = 0;                      // nesting of intercepted operators
  bool scope_open = false;                // depth > 0 and the engine was told
  bool announces_all = false;             // the innermost operator is torch's own (launch_guard.h)
  const GiveWay* give_way = nullptr;      // when the wait of its outermost operator's pages ends early
  bool fresh_region = false;              // this scope allocated, so results have to be announced
  std::vector<tp_access> accesses;        // of the operator that begins now
  uint64_t scope_stream = TP_NO_STREAM;   // that the open scope's end will be marked on
  std::vector<tp_access> announced;       // by the open scope, while launches are watched (launch_guard.h)
  std::vector<uint64_t> addresses;        // of its results
  struct InBatch {
    const tp_engine_api* engine;
    uint64_t address, handle;
  };
  std::vector<InBatch> batch;             // what collectives of a batch use (pending_works.h)
  uint64_t workspaces_on = TP_NO_STREAM;  // where it has made them ahead last (library_workspaces.h)
  uint8_t workspaces = 0;
  bool in_collective = false;                                       // the open scope is one
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> storages;  // to arm at the close (raw_access.h)
  std::atomic<uint64_t> counters[kCounterCount] = {};

  void count(Counter which) {
    // One writer: a plain addition suffices, and costs less than a locked one.
    counters[which].store(counters[which].load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
};

// While one exists this thread's wait for the pages of its outermost operator may end with GaveWay.
struct GiveWay {
  GiveWay(ThreadState& of, const std::atomic<bool>* when_asked, std::optional<std::chrono::steady_clock::time_point> at)
      : state(of), asked(when_asked), until(at), previous(std::exchange(of.give_way, this)) {}
  ~GiveWay() { state.give_way = previous; }
  GiveWay(const GiveWay&) = delete;
  GiveWay& operator=(const GiveWay&) = delete;
  bool now() const {
    return (asked != nullptr && asked->load()) || (until && std::chrono::steady_clock::now() > *until);
  }

  ThreadState& state;
  const std::atomic<bool>* const asked;
  const std::optional<std::chrono::steady_clock::time_point> until;
  const GiveWay* const previous;
};

extern std::atomic<const tp_engine_api*> attached_engine;  // null: everything goes on as without us
inline const tp_engine_api* engine_now() { return attached_engine.load(std::memory_order_acquire); }

// Launches are looked at (launch_guard.h). Set by the hook below, which an announcement calls when the engine asks for
// it.
extern std::atomic<bool> launch_watch;
extern std::atomic<void (*)()> watch_launches_hook;  // null: there is no guard

extern constinit thread_local ThreadState* current_thread_state;
ThreadState& make_thread_state();
inline ThreadState& thread_state() {
  ThreadState* state = current_thread_state;
  return state != nullptr ? *state : make_thread_state();
}
uint64_t counter_total(Counter which);

// While one exists this thread has another state, with a scope of its own: for operators that run while one of the
// thread's is in its midst (a signal handler during a wait). What they use is let go with each, as if another thread
// ran them.
class OwnScope {
 public:
  OwnScope();
  ~OwnScope();
  OwnScope(const OwnScope&) = delete;
  OwnScope& operator=(const OwnScope&) = delete;
  ThreadState& state() { return *current_thread_state; }

 private:
  ThreadState* const previous_;
};

inline const tp_engine_api* engine_for(const ThreadState& state, const tp_engine_api* attached) {
  return C10_UNLIKELY(state.depth > 0) ? state.engine : attached;
}
// Gives the scope of another engine up. Outside operators only.
void change_engine(ThreadState& state, const tp_engine_api* engine);
inline void use_engine(ThreadState& state, const tp_engine_api* engine) {
  if (C10_UNLIKELY(state.engine != engine)) change_engine(state, engine);
}

inline bool owns(const tp_engine_api& engine, const void* address) {
  return reinterpret_cast<uint64_t>(address) - engine.range_base < engine.range_bytes;
}

// Every engine that was ever attached: regions outlive their engine's attachment. Newest first.
void remember_engine(const tp_engine_api* engine);
const tp_engine_api* engine_of(const void* address);  // null: not ours

// torch's own streams live as long as the process; one that it was given has its handle for an id.
inline bool is_foreign(const c10::Stream& stream, uint64_t handle) {
  return handle != 0 && static_cast<uint64_t>(stream.id()) == handle;
}
// The current stream of this thread on the engine's device; 0 for CPU tensors.
uint64_t native_stream(const tp_engine_api& engine);

// The scope of this thread for `engine`, which is engine_for() of it.
tp_scope* scope_for(ThreadState& state, const tp_engine_api* engine);
// As above, and opened if an operator is running.
tp_scope* opened_scope(ThreadState& state);

// Throws in a forked child.
void check_usable(const tp_engine_api* engine);
// Calls slice(milliseconds) until it returns true: without the GIL, with a look at signals (python_wait.h).
void wait_in_slices(const std::function<bool(uint32_t)>& slice);
// Lets works that have ended let go of their pages; whether others hold some still. Asked during waits. That of
// pending_works.h, which stands above.
extern std::atomic<bool (*)()> ask_works;
extern std::atomic<uint64_t> works_let_go;  // how many have
// What to try before anybody fails for want of room; whether it changed anything. Deferral's, which stands above.
extern bool (*make_room)();
// Waits while `code` is TP_WAIT; the code of the end.
int32_t settled(ThreadState& state, const tp_engine_api* engine, int32_t code, const GiveWay* limit = nullptr);
inline bool lacks_room(int32_t code) { return code == TP_OUT_OF_MEMORY || code == TP_STORAGE_FULL; }
// Asks the engine, which answers with a code, and waits; asks again where room was lacking and some could be made.
// Works that ended meanwhile have made some: messages that a program has waited for are told by nobody, and the engine,
// which must not wait for messages, may have failed the request before anybody asked them.
template <class Ask>
int32_t settled_with_room(ThreadState& state, const tp_engine_api* engine, Ask ask, const GiveWay* limit = nullptr) {
  while (true) {
    const uint64_t let_go_before = works_let_go.load(std::memory_order_relaxed);
    const int32_t code = settled(state, engine, ask(), limit);
    if (C10_LIKELY(!lacks_room(code))) return code;
    (void)ask_works.load()();
    if (works_let_go.load(std::memory_order_relaxed) == let_go_before && !make_room()) return code;
  }
}
// Throws for any error.
void check_code(const ThreadState& state, const tp_engine_api* engine, int32_t code);
// The open scope has announced these to the engine: its launches may use them.
void note_announced(ThreadState& state, const tp_engine_api& engine, const tp_access* accesses, size_t count);
// Announces accesses to the open scope and waits for them.
void begin_accesses(ThreadState& state, const tp_operator& op, const tp_access* accesses, size_t count);
// Work that no operator stands for may use the region on the stream that is current now.
void note_stream(const tp_engine_api* engine, uint64_t address);
// Makes one region usable outside any operator, on the stream that is current now: see touch() of the engine.
void touch_address(ThreadState& state, const tp_engine_api* engine, uint64_t address, uint32_t keep);

}  // namespace tierpage
