// A driver that knows a few kernels and graphs, and a CUPTI whose one subscriber can be called: what the guard asks.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "guard/cupti_abi.h"
#include "guard/launch_words.h"

namespace tierpage::testing {

struct Node {
  CUgraphNodeType type = CU_GRAPH_NODE_TYPE_KERNEL;
  CUDA_KERNEL_NODE_PARAMS kernel{};
  CUDA_MEMCPY3D copy{};
  CUDA_MEMSET_NODE_PARAMS set{};
  CUgraph child = nullptr;
};

struct StandInCuda {
  std::map<CUfunction, std::vector<size_t>> functions;  // bytes of each parameter
  std::map<CUkernel, std::vector<size_t>> kernels;
  std::map<CUgraph, std::vector<Node>> graphs;
  int questions = 0;

  bool taken = false;  // CUPTI has a subscriber
  cupti::Callback callback = nullptr;
  void* user = nullptr;
  std::set<uint32_t> enabled;  // guarded by stand_in_mutex()
};

inline StandInCuda& cuda() {
  static StandInCuda instance;
  return instance;
}

inline std::mutex& stand_in_mutex() {
  static std::mutex instance;
  return instance;
}

inline bool is_enabled(uint32_t call) {
  const std::lock_guard lock(stand_in_mutex());
  return cuda().enabled.contains(call);
}

inline CUresult parameter_of(const std::vector<size_t>* parameters, size_t index, size_t* offset, size_t* bytes) {
  ++cuda().questions;
  if (parameters == nullptr || index >= parameters->size()) return CUDA_ERROR_INVALID_VALUE;
  *offset = 0;
  *bytes = (*parameters)[index];
  return CUDA_SUCCESS;
}

template <class Map, class Key>
const typename Map::mapped_type* found_in(const Map& map, Key key) {
  const auto found = map.find(key);
  return found == map.end() ? nullptr : &found->second;
}

inline KernelFacts stand_in_facts() {
  KernelFacts facts;
  facts.function_parameter = [](CUfunction function, size_t index, size_t* offset, size_t* bytes) {
    return parameter_of(found_in(cuda().functions, function), index, offset, bytes);
  };
  facts.kernel_parameter = [](CUkernel kernel, size_t index, size_t* offset, size_t* bytes) {
    return parameter_of(found_in(cuda().kernels, kernel), index, offset, bytes);
  };
  facts.graph_nodes = [](CUgraph graph, CUgraphNode* nodes, size_t* count) {
    std::vector<Node>& all = cuda().graphs.at(graph);
    for (size_t i = 0; nodes != nullptr && i < all.size(); ++i) nodes[i] = reinterpret_cast<CUgraphNode>(&all[i]);
    *count = all.size();
    return CUDA_SUCCESS;
  };
  facts.node_type = [](CUgraphNode node, CUgraphNodeType* type) {
    *type = reinterpret_cast<Node*>(node)->type;
    return CUDA_SUCCESS;
  };
  facts.kernel_node = [](CUgraphNode node, CUDA_KERNEL_NODE_PARAMS* kernel) {
    *kernel = reinterpret_cast<Node*>(node)->kernel;
    return CUDA_SUCCESS;
  };
  facts.copy_node = [](CUgraphNode node, CUDA_MEMCPY3D* copy) {
    *copy = reinterpret_cast<Node*>(node)->copy;
    return CUDA_SUCCESS;
  };
  facts.set_node = [](CUgraphNode node, CUDA_MEMSET_NODE_PARAMS* set) {
    *set = reinterpret_cast<Node*>(node)->set;
    return CUDA_SUCCESS;
  };
  facts.child_node = [](CUgraphNode node, CUgraph* child) {
    *child = reinterpret_cast<Node*>(node)->child;
    return CUDA_SUCCESS;
  };
  return facts;
}

inline cupti::Library stand_in_cupti() {
  cupti::Library library;
  library.subscribe = [](cupti::Subscriber*, cupti::Callback callback, void* user) {
    if (cuda().taken) return 39;  // CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED
    cuda().taken = true;
    cuda().callback = callback;
    cuda().user = user;
    return 0;
  };
  library.unsubscribe = [](cupti::Subscriber) {
    const std::lock_guard lock(stand_in_mutex());
    cuda().taken = false;
    cuda().enabled.clear();
    return 0;
  };
  library.enable_callback = [](uint32_t on, cupti::Subscriber, cupti::Domain, uint32_t call) {
    const std::lock_guard lock(stand_in_mutex());
    if (on != 0) cuda().enabled.insert(call);
    if (on == 0) cuda().enabled.erase(call);
    return 0;
  };
  library.get_result_string = [](cupti::Result, const char** text) {
    *text = "MULTIPLE_SUBSCRIBERS";
    return 0;
  };
  return library;
}

constexpr AddressRange kRange{0x7000'0000'0000, 1 << 30};
constexpr uint64_t kOurs = kRange.base + 4096;
constexpr uint64_t kOthers = 0x1234'5678;

template <class Handle>
Handle handle(uint64_t number) {
  return reinterpret_cast<Handle>(number);
}

}  // namespace tierpage::testing
