// Thread scopes and the engine's protocol: see engine_link.h.
#include "torch/engine_link.h"

#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>

#include "locks/mutex.h"
#include "torch/errors.h"
#include "torch/python_wait.h"

namespace tierpage {

std::atomic<const tp_engine_api*> attached_engine{nullptr};
std::atomic<bool> launch_watch{false};
std::atomic<void (*)()> watch_launches_hook{nullptr};
constinit thread_local ThreadState* current_thread_state = nullptr;

namespace {

struct EngineNode {
  const tp_engine_api* engine;
  EngineNode* next;
};
std::atomic<EngineNode*> engine_nodes{nullptr};

// Counters of all threads. Leaked on purpose: threads may end after static destructors ran.
struct ThreadRegistry {
  Mutex mutex{LockRank::kThreadRegistry};
  std::vector<ThreadState*> live TP_GUARDED_BY(mutex);
  uint64_t ended[kCounterCount] TP_GUARDED_BY(mutex) = {};
};
ThreadRegistry& registry() {
  static ThreadRegistry* const instance = new ThreadRegistry;
  return *instance;
}

ThreadState* new_state() {
  auto* state = new ThreadState;
  ThreadRegistry& all = registry();
  const LockGuard lock(all.mutex);
  all.live.push_back(state);
  return state;
}

void retire(ThreadState* state) {
  for (const ThreadState::InBatch& part : state->batch) part.engine->kept.let_go(part.address, part.handle);
  if (state->scope != nullptr) state->engine->scope_destroy(state->scope);
  ThreadRegistry& all = registry();
  {
    const LockGuard lock(all.mutex);
    all.live.erase(std::remove(all.live.begin(), all.live.end(), state), all.live.end());
    for (int32_t which = 0; which < kCounterCount; ++which) all.ended[which] += state->counters[which].load();
  }
  delete state;
}

struct ThreadEnd {
  ThreadState* state = nullptr;
  ~ThreadEnd() {
    current_thread_state = nullptr;
    if (state != nullptr) retire(state);
  }
};

}  // namespace

ThreadState& make_thread_state() {
  static thread_local ThreadEnd end;
  ThreadState* state = new_state();
  // A thread that runs operators from its last destructors gets a second state, which is leaked.
  if (end.state == nullptr) end.state = state;
  current_thread_state = state;
  return *state;
}

OwnScope::OwnScope() : previous_(&thread_state()) { current_thread_state = new_state(); }

OwnScope::~OwnScope() { retire(std::exchange(current_thread_state, previous_)); }

uint64_t counter_total(Counter which) {
  ThreadRegistry& all = registry();
  const LockGuard lock(all.mutex);
  uint64_t total = all.ended[which];
  for (const ThreadState* state : all.live) total += state->counters[which].load(std::memory_order_relaxed);
  return total;
}

void remember_engine(const tp_engine_api* engine) {
  for (const EngineNode* node = engine_nodes.load(); node != nullptr; node = node->next) {
    if (node->engine == engine) return;
  }
  // Never freed: deleters of tensors walk the list at any time.
  auto* node = new EngineNode{engine, engine_nodes.load()};
  while (!engine_nodes.compare_exchange_weak(node->next, node)) {
  }
}

const tp_engine_api* engine_of(const void* address) {
  for (const EngineNode* node = engine_nodes.load(std::memory_order_acquire); node != nullptr; node = node->next) {
    if (owns(*node->engine, address)) return node->engine;
  }
  return nullptr;
}

namespace {

// The stream that this thread used last. torch's stream has the same handle for ever under one id; asking for it
// changes the current device to and fro.
struct KnownStream {
  const tp_engine_api* engine = nullptr;
  c10::StreamId id = 0;
  uint64_t handle = 0;
};
constinit thread_local KnownStream known_stream;

}  // namespace

uint64_t native_stream(const tp_engine_api& engine) {
  if (engine.device_type == 0) return 0;
  const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(engine.device_index));
  const c10::Stream stream = c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)->getStream(device);
  KnownStream& known = known_stream;
  if (C10_LIKELY(known.engine == &engine && known.id == stream.id())) return known.handle;
  const auto handle = reinterpret_cast<uint64_t>(stream.native_handle());
  if (is_foreign(stream, handle)) engine.foreign_stream(handle);
  known = {&engine, stream.id(), handle};
  return handle;
}

void change_engine(ThreadState& state, const tp_engine_api* engine) {
  if (state.scope != nullptr) state.engine->scope_destroy(state.scope);
  state.scope = nullptr;
  state.engine = engine;
}

tp_scope* scope_for(ThreadState& state, const tp_engine_api* engine) {
  use_engine(state, engine);
  if (state.scope == nullptr) state.scope = engine->scope_create();
  return state.scope;
}

tp_scope* opened_scope(ThreadState& state) {
  tp_scope* scope = scope_for(state, state.engine);
  if (!state.scope_open && state.depth > 0) {
    state.scope_open = true;
    state.fresh_region = false;
    state.announced.clear();
    // What a nested operator uses first may be used on a side stream: where the outermost one works is asked at its
    // end.
    state.scope_stream = state.depth == 1 ? native_stream(*state.engine) : TP_NO_STREAM;
    state.engine->scope_open(scope, state.scope_stream);
  }
  return scope;
}

void wait_in_slices(const std::function<bool(uint32_t)>& slice) {
  wait_without_gil(slice, [] {
    const OwnScope handlers;  // this thread's scope is busy
    return PyErr_CheckSignals() != 0;
  });
}

bool (*make_room)() = [] { return false; };
std::atomic<bool (*)()> ask_works{+[] { return false; }};
std::atomic<uint64_t> works_let_go{0};

namespace {

constexpr uint32_t kWorkSliceMilliseconds = 2;

// Up to so long. Works that hold pages are asked again and again: nobody else may be there to do it.
int32_t wait_and_ask_works(const ThreadState& state, const tp_engine_api* engine, uint32_t milliseconds) {
  for (uint32_t waited = 0; waited < milliseconds; waited += kWorkSliceMilliseconds) {
    if (!ask_works.load()()) return engine->wait(state.scope, milliseconds - waited);
    const int32_t code = engine->wait(state.scope, kWorkSliceMilliseconds);
    if (code != TP_WAIT) return code;
  }
  return TP_WAIT;
}

}  // namespace

int32_t settled(ThreadState& state, const tp_engine_api* engine, int32_t code, const GiveWay* limit) {
  if (code != TP_WAIT) return code;
  try {
    wait_in_slices([&](uint32_t milliseconds) {
      code = wait_and_ask_works(state, engine, milliseconds);
      if (code == TP_WAIT && limit != nullptr && limit->now()) throw GaveWay{};
      return code != TP_WAIT;
    });
  } catch (...) {
    engine->cancel(state.scope);
    throw;
  }
  return code;
}

void check_code(const ThreadState& state, const tp_engine_api* engine, int32_t code) {
  if (code > TP_WAIT) raise_code(code, engine->error_message(state.scope), state.depth > 0);
}

void check_usable(const tp_engine_api* engine) {
  if (engine->forked() == 0) return;
  throw PagerError(TP_UNAVAILABLE,
                   "a paged tensor of the parent process was used in a forked child, where its pages do not exist. "
                   "Start workers with the \"spawn\" method, or copy what they need to small tensors first.");
}

void note_announced(ThreadState& state, const tp_engine_api& engine, const tp_access* accesses, size_t count) {
  void (*const begin_watching)() = watch_launches_hook.load(std::memory_order_relaxed);
  if (begin_watching == nullptr || __atomic_load_n(engine.launches.watched, __ATOMIC_ACQUIRE) == 0) return;
  if (C10_UNLIKELY(!launch_watch.load(std::memory_order_relaxed))) begin_watching();
  if (state.depth == 0 || !launch_watch.load(std::memory_order_relaxed)) return;
  state.announced.insert(state.announced.end(), accesses, accesses + count);
}

namespace {

// A scope's end is marked on one stream. What is used on another inside it is told to the engine.
void note_side_stream(const ThreadState& state, const tp_access* accesses, size_t count) {
  if (state.engine->device_type == 0) return;
  const uint64_t stream = native_stream(*state.engine);
  if (stream == state.scope_stream) return;
  for (size_t i = 0; i < count; ++i) state.engine->record_stream(accesses[i].address, stream);
}

}  // namespace

void begin_accesses(ThreadState& state, const tp_operator& op, const tp_access* accesses, size_t count) {
  check_usable(state.engine);
  const bool extends = state.scope_open || state.depth > 1;
  tp_scope* scope = opened_scope(state);
  const int32_t code = settled_with_room(
      state, state.engine, [&] { return state.engine->begin(scope, &op, accesses, count); },
      // What its kernel asks for cannot be tried again, so that waits for as long as it takes.
      state.depth == 1 ? state.give_way : nullptr);
  check_code(state, state.engine, code);
  if (C10_UNLIKELY(extends)) note_side_stream(state, accesses, count);
  note_announced(state, *state.engine, accesses, count);
}

void note_stream(const tp_engine_api* engine, uint64_t address) {
  if (engine->device_type != 0) engine->record_stream(address, native_stream(*engine));
}

void touch_address(ThreadState& state, const tp_engine_api* engine, uint64_t address, uint32_t keep) {
  check_usable(engine);
  tp_scope* scope = scope_for(state, engine);
  check_code(state, engine, settled_with_room(state, engine, [&] { return engine->touch(scope, address, keep); }));
  note_stream(engine, address);
  note_announced(state, *engine, nullptr, 0);
}

}  // namespace tierpage
