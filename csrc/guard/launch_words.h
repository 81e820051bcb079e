// Finds pointers into one range of addresses among the arguments of kernels, copies and graphs.
//
// A kernel's arguments are a list of places, one per parameter; their number and sizes come from the driver, once per
// kernel. Every aligned word of every parameter is compared with the range, so pointers inside of structs are found.
// What a kernel reads from device memory (arrays of pointers) is not seen here: operators announce those tensors.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "locks/mutex.h"

namespace tierpage {

struct AddressRange {
  uint64_t base = 0;
  uint64_t bytes = 0;
  bool holds(uint64_t address) const { return address - base < bytes; }
};

struct Pointer {
  uint64_t address = 0;
  bool written = true;  // may be
};

// The functions of the driver that are asked, as a table: tests bring their own.
struct KernelFacts {
  CUresult (*function_parameter)(CUfunction, size_t index, size_t* offset, size_t* bytes) = nullptr;
  CUresult (*kernel_parameter)(CUkernel, size_t index, size_t* offset, size_t* bytes) = nullptr;
  CUresult (*graph_nodes)(CUgraph, CUgraphNode*, size_t* count) = nullptr;
  CUresult (*node_type)(CUgraphNode, CUgraphNodeType*) = nullptr;
  CUresult (*kernel_node)(CUgraphNode, CUDA_KERNEL_NODE_PARAMS*) = nullptr;
  CUresult (*copy_node)(CUgraphNode, CUDA_MEMCPY3D*) = nullptr;
  CUresult (*set_node)(CUgraphNode, CUDA_MEMSET_NODE_PARAMS*) = nullptr;
  CUresult (*child_node)(CUgraphNode, CUgraph*) = nullptr;

  bool complete() const {
    return function_parameter != nullptr && kernel_parameter != nullptr && graph_nodes != nullptr &&
           node_type != nullptr && kernel_node != nullptr && copy_node != nullptr && set_node != nullptr &&
           child_node != nullptr;
  }
};
KernelFacts load_kernel_facts();  // of libcuda.so.1, as far as it has them

class LaunchWords {
 public:
  explicit LaunchWords(const KernelFacts& facts) : facts_(facts) {}

  // Appends to `pointers`. `function` is what launches are given: a CUfunction, or a CUkernel in its place.
  void of_kernel(CUfunction function, void** parameters, void** extra, const AddressRange& range,
                 std::vector<Pointer>& pointers);
  void of_graph(CUgraph graph, const AddressRange& range, std::vector<Pointer>& pointers, int depth = 0);
  static void of_words(const void* words, size_t count, int written_word, const AddressRange& range,
                       std::vector<Pointer>& pointers);

  // Handles of kernels may be given again to others: what was learned of them is forgotten.
  void forget_kernels();

 private:
  struct Parameter {
    uint32_t index = 0;
    uint32_t words = 0;
  };
  using Layout = std::vector<Parameter>;
  struct Known {
    CUfunction function = nullptr;
    uint64_t generation = 0;
    std::shared_ptr<const Layout> layout;
  };

  const Layout& layout_of(CUfunction function);
  std::shared_ptr<const Layout> ask(CUfunction function) const;  // empty where the driver does not tell

  const KernelFacts facts_;
  std::atomic<uint64_t> generation_{1};
  Mutex mutex_{LockRank::kLaunchWords};
  std::unordered_map<CUfunction, std::shared_ptr<const Layout>> layouts_ TP_GUARDED_BY(mutex_);
};

// What executable graphs use, by their handles. One that is not in the book was made before anybody looked, so when
// nothing of this range was there to be used, or when all that it uses was held.
class GraphBook {
 public:
  // From now on, and until a note in place of that, nobody knows what it uses: for the time in which it is read, which
  // may fail.
  void note_unread(CUgraphExec graph);
  void note(CUgraphExec graph, std::vector<Pointer> pointers, bool in_place_of_before);
  void forget(CUgraphExec graph);
  bool append(CUgraphExec graph, std::vector<Pointer>& pointers) const;  // false: it is not known
  std::vector<Pointer> take_all();                                       // of every graph; none is known afterwards

 private:
  struct Used {
    std::vector<Pointer> pointers;
    bool read = true;
  };
  mutable Mutex mutex_{LockRank::kGraphBook};
  std::unordered_map<CUgraphExec, Used> graphs_ TP_GUARDED_BY(mutex_);
};

}  // namespace tierpage
