// What is done at each launch: see launch_guard.h.
//
// Runs in the callback of a call into the driver, so no operator may be run; the door stops exceptions. A wait gives
// the GIL up; signal handlers run when the launch is through. The engine's own threads are let through: their copies
// are what is waited for.
#include "torch/launch_guard.h"

#include <c10/util/Logging.h>

#include <algorithm>
#include <atomic>
#include <exception>

#include "torch/cuda_symbols.h"
#include "torch/python_wait.h"

namespace tierpage {
namespace {

// CUDA's two names of the default stream; torch knows the first.
uint64_t known_name(uint64_t stream) { return stream == reinterpret_cast<uint64_t>(CU_STREAM_LEGACY) ? 0 : stream; }

class LaunchGuard final : public LaunchHandler {
 public:
  AddressRange range() const override {
    const tp_engine_api* engine = engine_now();
    return engine != nullptr ? AddressRange{engine->range_base, engine->range_bytes} : AddressRange{};
  }
  bool looks_at(uint64_t stream) const override;
  Answer before(const Launch& launch) override;
  void after(uint64_t stream) override;
  void capture(int change) override;

 private:
  std::atomic<const tp_engine_api*> told_{nullptr};  // of a capture last
};

LaunchGuard& guard() {
  static LaunchGuard* const instance = new LaunchGuard;  // the driver may call until the process ends
  return *instance;
}

// CUDA never captures its default stream, on which torch works unless told otherwise.
bool capturing(uint64_t stream) {
  if (stream == 0) return false;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cuda_symbols().stream_is_capturing(reinterpret_cast<cudaStream_t>(stream), &status) == cudaSuccess) {
    return status != cudaStreamCaptureStatusNone;
  }
  (void)cuda_symbols().get_last_error();
  return true;  // another stream's capture forbids the question: this launch fails as well
}

bool was_announced(const ThreadState& state, uint64_t address) {
  return std::any_of(state.announced.rbegin(), state.announced.rend(),
                     [&](const tp_access& access) { return address - access.address < access.bytes; });
}

// An operator of torch's own has announced all that it uses, and marks its end on one stream. Its kernels' arguments
// hold more: structs with room for many dimensions, of which few are filled, carry what was on the stack before, old
// pointers among it. They are worth a look only where the mark does not reach.
bool LaunchGuard::looks_at(uint64_t stream) const {
  const tp_engine_api* engine = engine_now();
  if (engine == nullptr || engine->device_type == 0 || engine->launches.own_thread() != 0) return false;
  const ThreadState& state = thread_state();
  return !state.announces_all || (state.scope_open && known_name(stream) != state.scope_stream);
}

// The end of a capture must be told although paging has ended meanwhile: captures are counted for all engines together.
void LaunchGuard::capture(int change) {
  const tp_engine_api* engine = engine_now();
  if (engine == nullptr || engine->device_type == 0) engine = told_.load();
  if (engine == nullptr) return;
  told_.store(engine);
  engine->launches.note_capture(engine->runtime, change);
}

// Memory that a launch asks the engine for. If an exception comes before it is known whether the launch will be made,
// nobody tells of its end: what waits is taken back, and what is pinned is let go of.
class Asked {
 public:
  Asked(const tp_engine_api* engine, tp_scope* scope, uint64_t stream)
      : engine_(engine), scope_(scope), stream_(stream) {}
  ~Asked() {
    if (answered_) return;
    engine_->cancel(scope_);
    engine_->launches.end(scope_, stream_);
  }
  Asked(const Asked&) = delete;
  Asked& operator=(const Asked&) = delete;

  int32_t answer(const std::vector<tp_access>& accesses) {
    int32_t code = engine_->launches.begin(scope_, accesses.data(), accesses.size(), stream_);
    if (code == TP_WAIT) code = wait_without_signals(engine_, scope_);
    return code;
  }
  void answered() { answered_ = true; }

 private:
  const tp_engine_api* const engine_;
  tp_scope* const scope_;
  const uint64_t stream_;
  bool answered_ = false;
};

LaunchHandler::Answer LaunchGuard::before(const Launch& launch) {
  const tp_engine_api* engine = engine_now();
  if (engine == nullptr) return Answer::kGo;
  ThreadState& state = thread_state();
  engine = engine_for(state, engine);
  const uint64_t stream = known_name(launch.stream);
  const bool in_scope = state.scope_open && !state.announced.empty() && stream == state.scope_stream;
  // Its own list: an operator may be between its arguments and its launch.
  static thread_local std::vector<tp_access> accesses;
  accesses.clear();
  for (const Pointer& pointer : launch.pointers) {
    if (in_scope && was_announced(state, pointer.address)) continue;
    accesses.push_back({pointer.address, 1, pointer.written ? uint32_t{TP_READ | TP_WRITE} : uint32_t{TP_READ}, 0});
  }
  if (accesses.empty() || capturing(stream)) return Answer::kGo;
  state.count(kLaunchesGuarded);
  tp_scope* scope = scope_for(state, engine);
  Asked asked(engine, scope, stream);
  const uint64_t let_go_before = works_let_go.load();
  int32_t code = asked.answer(accesses);
  if (lacks_room(code)) {
    (void)ask_works.load()();
    if (works_let_go.load() != let_go_before) code = asked.answer(accesses);
  }
  asked.answered();
  if (code == TP_OK) return Answer::kGoAndTell;
  // An operator has announced what it uses: what else looks like a pointer is a guess, and no reason to fail.
  if (state.depth > 0) return Answer::kGo;
  LOG(WARNING) << "tierpage: " << launch.name << ": " << engine->error_message(scope);
  return Answer::kRefuse;
}

void LaunchGuard::after(uint64_t stream) {
  const ThreadState& state = thread_state();
  if (state.engine != nullptr && state.scope != nullptr) state.engine->launches.end(state.scope, known_name(stream));
}

// The guard may be closed meanwhile: who stores last has looked at the door after that.
void begin_watching() {
  LaunchDoor& door = LaunchDoor::instance();
  door.watch(true);
  launch_watch.store(door.watching());
  if (!door.watching()) launch_watch.store(false);
}

}  // namespace

LaunchHandler& launch_handler() { return guard(); }

void hold_for_graphs(const tp_engine_api& engine, const std::vector<Pointer>& pointers) {
  std::exception_ptr first;
  for (const Pointer& pointer : pointers) {
    if (!owns(engine, reinterpret_cast<void*>(pointer.address))) continue;
    try {
      touch_address(thread_state(), &engine, pointer.address, 0);
    } catch (...) {
      if (first == nullptr) first = std::current_exception();
    }
  }
  if (first != nullptr) std::rethrow_exception(first);
}

std::string open_launch_guard() {
  std::string refusal = LaunchDoor::instance().open(&guard());
  if (refusal.empty()) {
    watch_launches_hook.store(&begin_watching);
    if (const tp_engine_api* engine = engine_now()) engine->launches.set_hook(&begin_watching);
  }
  return refusal;
}

void close_launch_guard() {
  if (watch_launches_hook.exchange(nullptr) == nullptr) return;
  const tp_engine_api* engine = engine_now();
  if (engine != nullptr) engine->launches.set_hook(nullptr);
  std::vector<Pointer> in_graphs;
  {
    const GilReleased released;  // a launch that waits may need the GIL to go on
    in_graphs = LaunchDoor::instance().close();
  }
  launch_watch.store(false);
  if (engine != nullptr) hold_for_graphs(*engine, in_graphs);
}

}  // namespace tierpage
