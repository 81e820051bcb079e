// Pointers among arguments: see launch_words.h.
#include "guard/launch_words.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "guard/library_symbol.h"

namespace tierpage {
namespace {

constexpr size_t kWord = sizeof(uint64_t);
constexpr size_t kParametersMax = 4096;  // CUDA allows 32 KiB of arguments
constexpr size_t kKnownKernels = 256;    // a thread's own memory of layouts, a power of two
constexpr int kGraphDepthMax = 32;

uint64_t word_at(const void* place, size_t index) {
  uint64_t word = 0;
  memcpy(&word, static_cast<const char*>(place) + index * kWord, kWord);
  return word;
}

// cuLaunchKernel's other way of handing over arguments: one block, described by a list of keys and values.
void read_block(void** extra, const AddressRange& range, std::vector<Pointer>& pointers) {
  const void* block = nullptr;
  size_t bytes = 0;
  for (; extra[0] != CU_LAUNCH_PARAM_END; extra += 2) {
    if (extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER) block = extra[1];
    if (extra[0] == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<const size_t*>(extra[1]);
  }
  if (block != nullptr) LaunchWords::of_words(block, bytes / kWord, -1, range, pointers);
}

}  // namespace

KernelFacts load_kernel_facts() {
  KernelFacts facts;
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return facts;
  look_up(library, "cuFuncGetParamInfo", facts.function_parameter);
  look_up(library, "cuKernelGetParamInfo", facts.kernel_parameter);
  look_up(library, "cuGraphGetNodes", facts.graph_nodes);
  look_up(library, "cuGraphNodeGetType", facts.node_type);
  look_up(library, "cuGraphKernelNodeGetParams_v2", facts.kernel_node);
  look_up(library, "cuGraphMemcpyNodeGetParams", facts.copy_node);
  look_up(library, "cuGraphMemsetNodeGetParams", facts.set_node);
  look_up(library, "cuGraphChildGraphNodeGetGraph", facts.child_node);
  return facts;
}

void LaunchWords::of_words(const void* words, size_t count, int written_word, const AddressRange& range,
                           std::vector<Pointer>& pointers) {
  for (size_t i = 0; i < count; ++i) {
    const uint64_t word = word_at(words, i);
    if (range.holds(word)) pointers.push_back({word, written_word < 0 || static_cast<size_t>(written_word) == i});
  }
}

void LaunchWords::of_kernel(CUfunction function, void** parameters, void** extra, const AddressRange& range,
                            std::vector<Pointer>& pointers) {
  if (parameters == nullptr) {
    if (extra != nullptr) read_block(extra, range, pointers);
    return;
  }
  for (const Parameter& parameter : layout_of(function)) {
    of_words(parameters[parameter.index], parameter.words, -1, range, pointers);
  }
}

// The driver knows a kernel by one of two kinds of handle; it refuses the question for the other.
std::shared_ptr<const LaunchWords::Layout> LaunchWords::ask(CUfunction function) const {
  auto layout = std::make_shared<Layout>();
  const auto collect = [&](auto question, auto handle) {
    size_t offset = 0;
    size_t bytes = 0;
    size_t index = 0;
    for (; index < kParametersMax && question(handle, index, &offset, &bytes) == CUDA_SUCCESS; ++index) {
      if (bytes >= kWord) layout->push_back({static_cast<uint32_t>(index), static_cast<uint32_t>(bytes / kWord)});
    }
    return index > 0;
  };
  if (!collect(facts_.function_parameter, function)) {
    (void)collect(facts_.kernel_parameter, reinterpret_cast<CUkernel>(function));
  }
  return layout;
}

const LaunchWords::Layout& LaunchWords::layout_of(CUfunction function) {
  static thread_local std::unique_ptr<Known[]> known(new Known[kKnownKernels]);
  static thread_local const LaunchWords* owner = nullptr;
  if (owner != this) {
    std::fill_n(known.get(), kKnownKernels, Known{});
    owner = this;
  }
  const uint64_t generation = generation_.load(std::memory_order_acquire);
  Known& place = known[(reinterpret_cast<uintptr_t>(function) >> 4) % kKnownKernels];
  if (place.function == function && place.generation == generation) return *place.layout;
  std::shared_ptr<const Layout> layout;
  {
    const LockGuard lock(mutex_);
    const auto found = layouts_.find(function);
    if (found != layouts_.end()) layout = found->second;
  }
  if (layout == nullptr) {
    layout = ask(function);
    const LockGuard lock(mutex_);
    layouts_[function] = layout;
  }
  place = {function, generation, std::move(layout)};
  return *place.layout;
}

void LaunchWords::forget_kernels() {
  const LockGuard lock(mutex_);
  layouts_.clear();
  generation_.fetch_add(1, std::memory_order_release);
}

void LaunchWords::of_graph(CUgraph graph, const AddressRange& range, std::vector<Pointer>& pointers, int depth) {
  size_t count = 0;
  if (depth >= kGraphDepthMax || facts_.graph_nodes(graph, nullptr, &count) != CUDA_SUCCESS) return;
  std::vector<CUgraphNode> nodes(count);
  if (count == 0 || facts_.graph_nodes(graph, nodes.data(), &count) != CUDA_SUCCESS) return;
  for (const CUgraphNode node : nodes) {
    CUgraphNodeType type{};
    if (facts_.node_type(node, &type) != CUDA_SUCCESS) continue;
    if (type == CU_GRAPH_NODE_TYPE_KERNEL) {
      CUDA_KERNEL_NODE_PARAMS kernel{};
      if (facts_.kernel_node(node, &kernel) != CUDA_SUCCESS) continue;
      const auto function = kernel.func != nullptr ? kernel.func : reinterpret_cast<CUfunction>(kernel.kern);
      of_kernel(function, kernel.kernelParams, kernel.extra, range, pointers);
    } else if (type == CU_GRAPH_NODE_TYPE_MEMCPY) {
      CUDA_MEMCPY3D copy{};
      if (facts_.copy_node(node, &copy) == CUDA_SUCCESS) of_words(&copy, sizeof copy / kWord, -1, range, pointers);
    } else if (type == CU_GRAPH_NODE_TYPE_MEMSET) {
      CUDA_MEMSET_NODE_PARAMS set{};
      if (facts_.set_node(node, &set) == CUDA_SUCCESS) of_words(&set.dst, 1, -1, range, pointers);
    } else if (type == CU_GRAPH_NODE_TYPE_GRAPH) {
      CUgraph child = nullptr;
      if (facts_.child_node(node, &child) == CUDA_SUCCESS) of_graph(child, range, pointers, depth + 1);
    }
  }
}

void GraphBook::note_unread(CUgraphExec graph) {
  const LockGuard lock(mutex_);
  graphs_[graph].read = false;
}

void GraphBook::note(CUgraphExec graph, std::vector<Pointer> pointers, bool in_place_of_before) {
  const LockGuard lock(mutex_);
  Used& used = graphs_[graph];
  std::vector<Pointer>& all = used.pointers;
  if (in_place_of_before) all.clear();
  all.insert(all.end(), pointers.begin(), pointers.end());
  std::sort(all.begin(), all.end(), [](const Pointer& a, const Pointer& b) {
    return a.address != b.address ? a.address < b.address : a.written > b.written;
  });
  all.erase(std::unique(all.begin(), all.end(),
                        [](const Pointer& a, const Pointer& b) { return a.address == b.address; }),
            all.end());
  used.read = used.read || in_place_of_before;
}

void GraphBook::forget(CUgraphExec graph) {
  const LockGuard lock(mutex_);
  graphs_.erase(graph);
}

bool GraphBook::append(CUgraphExec graph, std::vector<Pointer>& pointers) const {
  const LockGuard lock(mutex_);
  const auto found = graphs_.find(graph);
  if (found == graphs_.end()) return true;
  const Used& used = found->second;
  pointers.insert(pointers.end(), used.pointers.begin(), used.pointers.end());
  return used.read;
}

std::vector<Pointer> GraphBook::take_all() {
  const LockGuard lock(mutex_);
  std::vector<Pointer> all;
  for (const auto& [graph, used] : graphs_) all.insert(all.end(), used.pointers.begin(), used.pointers.end());
  graphs_.clear();
  return all;
}

}  // namespace tierpage
