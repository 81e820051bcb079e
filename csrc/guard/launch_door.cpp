// The driver's calls as CUPTI tells of them: see launch_door.h.
#include "guard/launch_door.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "guard/driver_calls.h"
#include "guard/library_symbol.h"

namespace tierpage {
namespace {

bool cooperative(const DriverCall& call) {
  return call.number == cupti::kLaunchCooperativeKernel || call.number == cupti::kLaunchCooperativeKernelPtsz;
}

// Between a call's begin and its end, one or both.
constexpr uint64_t kTold = 1;
constexpr uint64_t kRefused = 2;

bool is_rare(const DriverCall& call) { return call.kind >= CallKind::kInstantiate; }

uint64_t stream_of(const DriverCall& call, const void* arguments) {
  if (call.kind == CallKind::kLaunch) {
    return reinterpret_cast<uint64_t>(static_cast<const LaunchArguments*>(arguments)->stream);
  }
  if (call.kind == CallKind::kLaunchEx) {
    const CUlaunchConfig* config = static_cast<const LaunchExArguments*>(arguments)->config;
    return config != nullptr ? reinterpret_cast<uint64_t>(config->hStream) : 0;
  }
  return call.stream_word < 0 ? 0 : static_cast<const uint64_t*>(arguments)[call.stream_word];
}

// Of cuStreamBeginCapture in all its versions, and of cuStreamEndCapture.
uint64_t captured_stream(const void* arguments) { return *static_cast<const uint64_t*>(arguments); }

// A thread in a callback.
class Inside {
 public:
  explicit Inside(std::atomic<int>& count) : count_(count) { count_.fetch_add(1, std::memory_order_acq_rel); }
  ~Inside() { count_.fetch_sub(1, std::memory_order_acq_rel); }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  std::atomic<int>& count_;
};

cupti::Library load_cupti() {
  cupti::Library library;
  void* handle = nullptr;
  // torch's own first: one process has one CUPTI.
  for (const int flags : {RTLD_NOLOAD | RTLD_NOW, RTLD_NOW}) {
    for (const char* name : {"libcupti.so.13", "libcupti.so.12", "libcupti.so"}) {
      if (handle == nullptr) handle = dlopen(name, flags | RTLD_LOCAL);
    }
  }
  if (handle == nullptr) return library;
  look_up(handle, "cuptiSubscribe", library.subscribe);
  look_up(handle, "cuptiUnsubscribe", library.unsubscribe);
  look_up(handle, "cuptiEnableCallback", library.enable_callback);
  look_up(handle, "cuptiGetResultString", library.get_result_string);
  return library;
}

}  // namespace

LaunchDoor& LaunchDoor::instance() {
  static LaunchDoor* const door = new LaunchDoor(load_kernel_facts(), load_cupti());  // callbacks may outlive main()
  return *door;
}

LaunchDoor::LaunchDoor(const KernelFacts& facts, const cupti::Library& library)
    : library_(library), facts_(facts), words_(facts) {}

std::string LaunchDoor::open(LaunchHandler* handler) {
  const LockGuard life(life_mutex_);
  const LockGuard lock(mutex_);
  if (open_) return {};
  if (library_.subscribe == nullptr || library_.unsubscribe == nullptr || library_.enable_callback == nullptr) {
    return "libcupti is not installed (pip install nvidia-cuda-cupti)";
  }
  if (!facts_.complete()) return "the driver is older than CUDA 12.4 and does not tell where a kernel's arguments lie";
  handler_ = handler;
  const cupti::Result result = library_.subscribe(&subscriber_, &LaunchDoor::on_call, this);
  if (result != cupti::kSuccess) {
    const char* text = nullptr;
    if (library_.get_result_string != nullptr) (void)library_.get_result_string(result, &text);
    return std::string("CUPTI has another user, a profiler for example (") + (text != nullptr ? text : "no text") + ")";
  }
  words_.forget_kernels();
  enable(false, true);
  open_.store(true, std::memory_order_release);
  return {};
}

void LaunchDoor::watch(bool on) {
  if (watching_.load(std::memory_order_acquire) == on) return;
  const LockGuard lock(mutex_);
  if (!open_ || watching_ == on) return;
  if (on) watching_.store(true, std::memory_order_release);
  enable(true, on);
  if (!on) watching_.store(false, std::memory_order_release);
}

std::vector<Pointer> LaunchDoor::close() {
  const LockGuard life(life_mutex_);
  {
    const LockGuard lock(mutex_);
    if (!open_) return {};
    open_.store(false, std::memory_order_release);
    watching_.store(false, std::memory_order_release);
    (void)library_.unsubscribe(subscriber_);
  }
  while (inside_.load(std::memory_order_acquire) != 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
  std::vector<uint64_t> going_on;
  {
    const LockGuard lock(capture_mutex_);
    going_on.swap(captures_);
  }
  for (size_t i = 0; i < going_on.size(); ++i) handler_->capture(-1);
  return graphs_.take_all();
}

void LaunchDoor::capture_begins(uint64_t stream) {
  {
    const LockGuard lock(capture_mutex_);
    captures_.push_back(stream);
  }
  try {
    handler_->capture(1);
  } catch (...) {
    (void)forget_capture(stream);  // only what the handler has taken
    throw;
  }
}

void LaunchDoor::capture_over(uint64_t stream) {
  if (forget_capture(stream)) handler_->capture(-1);
}

// False where none is known: one that began before the door was open. By its stream, or it would end another's.
bool LaunchDoor::forget_capture(uint64_t stream) {
  const LockGuard lock(capture_mutex_);
  const auto found = std::find(captures_.begin(), captures_.end(), stream);
  if (found == captures_.end()) return false;
  captures_.erase(found);
  return true;
}

void LaunchDoor::enable(bool launches, bool on) {
  for (const DriverCall& call : driver_calls()) {
    if (is_rare(call) == launches) continue;
    // One that this CUPTI does not know is one that this driver does not have.
    (void)library_.enable_callback(on ? 1 : 0, subscriber_, cupti::kDriverApi, call.number);
  }
}

void LaunchDoor::on_call(void* user, cupti::Domain domain, uint32_t number, const cupti::CallbackData* data) {
  const DriverCall* call = domain == cupti::kDriverApi ? driver_call(number) : nullptr;
  if (call == nullptr) return;
  auto& door = *static_cast<LaunchDoor*>(user);
  const Inside inside(door.inside_);
  try {
    if (data->site == cupti::kEnter) {
      door.enter(*call, *data);
    } else {
      door.exit(*call, *data);
    }
  } catch (...) {
    // Not through the driver's frames. Whether the memory is there is not known, so the device must not see the call.
    if (data->site == cupti::kEnter && !is_rare(*call)) refuse(*call, *data);
  }
}

bool LaunchDoor::read(const DriverCall& call, const void* arguments, const AddressRange& range,
                      std::vector<Pointer>& pointers) {
  switch (call.kind) {
    case CallKind::kLaunch: {
      const auto& launch = *static_cast<const LaunchArguments*>(arguments);
      words_.of_kernel(launch.function, launch.parameters, cooperative(call) ? nullptr : launch.extra, range, pointers);
      return true;
    }
    case CallKind::kLaunchEx: {
      const auto& launch = *static_cast<const LaunchExArguments*>(arguments);
      words_.of_kernel(launch.function, launch.parameters, launch.extra, range, pointers);
      return true;
    }
    case CallKind::kCopy: LaunchWords::of_words(arguments, call.words, call.written_word, range, pointers); return true;
    case CallKind::kShapedCopy: {
      const void* shape = *static_cast<const void* const*>(arguments);
      if (shape != nullptr) LaunchWords::of_words(shape, call.words, -1, range, pointers);
      return true;
    }
    case CallKind::kGraphLaunch: return graphs_.append(*static_cast<const CUgraphExec*>(arguments), pointers);
    default: return true;
  }
}

// All versions of a kernel node's parameters begin alike; only the second has a CUkernel.
void LaunchDoor::read_node(const void* parameters, const AddressRange& range, std::vector<Pointer>& pointers) {
  const auto& kernel = *static_cast<const CUDA_KERNEL_NODE_PARAMS_v1*>(parameters);
  if (kernel.func != nullptr) words_.of_kernel(kernel.func, kernel.kernelParams, kernel.extra, range, pointers);
}

// The driver reads the arguments where CUPTI shows them: one that it refuses ends the call with an error, and without
// any harm to the context.
void LaunchDoor::spoil(const DriverCall& call, const void* arguments) {
  auto* words = static_cast<uint64_t*>(const_cast<void*>(arguments));
  if (call.kind == CallKind::kLaunch) {
    static_cast<LaunchArguments*>(const_cast<void*>(arguments))->grid[0] = 0;
  } else if (call.kind == CallKind::kLaunchEx) {
    static thread_local CUlaunchConfig config;
    auto* launch = static_cast<LaunchExArguments*>(const_cast<void*>(arguments));
    if (launch->config == nullptr) return;  // the driver refuses that already
    config = *launch->config;
    config.gridDimX = 0;
    launch->config = &config;
  } else {
    words[0] = 0;  // where to copy to, the copy's shape, or the graph
  }
}

void LaunchDoor::refuse(const DriverCall& call, const cupti::CallbackData& data) {
  *data.correlation_data |= kRefused;
  spoil(call, data.parameters);
}

void LaunchDoor::enter(const DriverCall& call, const cupti::CallbackData& data) {
  *data.correlation_data = 0;
  if (is_rare(call)) {
    if (call.kind == CallKind::kUnload) words_.forget_kernels();
    if (call.kind == CallKind::kBeginCapture) capture_begins(captured_stream(data.parameters));
    if (call.kind == CallKind::kExecDestroy) graphs_.forget(*static_cast<const CUgraphExec*>(data.parameters));
    return;
  }
  const uint64_t stream = stream_of(call, data.parameters);
  if (!handler_->looks_at(stream)) return;
  static thread_local std::vector<Pointer> found;
  std::vector<Pointer> pointers = std::move(found);  // ours alone, though the handler may come back here
  pointers.clear();
  if (!read(call, data.parameters, handler_->range(), pointers)) {
    refuse(call, data);
  } else if (!pointers.empty()) {
    const char* name = data.symbol_name != nullptr ? data.symbol_name : data.function_name;
    const auto answer = handler_->before({name, stream, pointers});
    // Nothing throws from here on: what was taken is given back by after().
    if (answer == LaunchHandler::Answer::kGoAndTell) *data.correlation_data |= kTold;
    if (answer == LaunchHandler::Answer::kRefuse) refuse(call, data);
  }
  found = std::move(pointers);
}

// Interleaving 5.
void LaunchDoor::made_executable(CUgraphExec graph_exec, CUgraph graph) {
  graphs_.note_unread(graph_exec);
  std::vector<Pointer> pointers;
  words_.of_graph(graph, handler_->range(), pointers);
  graphs_.note(graph_exec, std::move(pointers), true);
}

void LaunchDoor::add_to_graph(CUgraphExec graph_exec, const void* kernel) {
  try {
    std::vector<Pointer> pointers;
    read_node(kernel, handler_->range(), pointers);
    graphs_.note(graph_exec, std::move(pointers), false);
  } catch (...) {
    graphs_.note_unread(graph_exec);
    throw;
  }
}

void LaunchDoor::exit(const DriverCall& call, const cupti::CallbackData& data) {
  if (!is_rare(call)) {
    // The caller gets what stands here. The driver itself knows only of arguments that make no sense.
    if ((*data.correlation_data & kRefused) != 0 && data.return_value != nullptr) {
      *static_cast<CUresult*>(const_cast<void*>(data.return_value)) = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if ((*data.correlation_data & kTold) != 0) handler_->after(stream_of(call, data.parameters));
    return;
  }
  const auto* returned = static_cast<const CUresult*>(data.return_value);
  const CUresult result = returned != nullptr ? *returned : CUDA_SUCCESS;
  // Counted from before it begins until behind its end, whether that succeeds or not. A thread that may not end it
  // leaves it as it is.
  const bool ends = call.kind == CallKind::kEndCapture && result != CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  if (ends || (call.kind == CallKind::kBeginCapture && result != CUDA_SUCCESS)) {
    capture_over(captured_stream(data.parameters));
  }
  if (result != CUDA_SUCCESS) return;
  if (call.kind == CallKind::kInstantiate) {
    const auto& made = *static_cast<const InstantiateArguments*>(data.parameters);
    made_executable(*made.result, made.graph);
  } else if (call.kind == CallKind::kExecUpdate) {
    const auto& update = *static_cast<const ExecUpdateArguments*>(data.parameters);
    made_executable(update.graph_exec, update.graph);
  } else if (call.kind == CallKind::kExecSetParams) {
    const auto& set = *static_cast<const ExecSetArguments*>(data.parameters);
    const void* parameters = set.parameters;
    if (call.number == cupti::kGraphExecNodeSetParams) {
      const auto* node = static_cast<const CUgraphNodeParams*>(parameters);
      if (node->type != CU_GRAPH_NODE_TYPE_KERNEL) return;
      parameters = &node->kernel;
    }
    add_to_graph(set.graph_exec, parameters);
  }
}

}  // namespace tierpage
