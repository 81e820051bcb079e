// The functions of the driver that make a device touch memory, and what is to be read from their arguments.
//
// CUPTI hands over the arguments as one struct of 8-byte words: each is a handle, a device pointer, a size or a number,
// and the words that hold device pointers are looked at with all others. A number that happens to be an address costs a
// fetch, never a wrong result.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <span>

#include "guard/cupti_abi.h"

namespace tierpage {

enum class CallKind : uint8_t {
  kLaunch,      // cuLaunchKernel, cuLaunchCooperativeKernel: the arguments lie behind kernelParams or extra
  kLaunchEx,    // cuLaunchKernelEx: the same, with the stream in its configuration
  kCopy,        // words of the struct
  kShapedCopy,  // its first word points to a descriptor of the copy
  kGraphLaunch,
  kInstantiate,    // an executable graph is made (at the call's end)
  kExecUpdate,     // an executable graph takes over the nodes of another graph
  kExecSetParams,  // one of its nodes gets other arguments
  kExecDestroy,
  kBeginCapture,
  kEndCapture,
  kUnload,  // functions die, their handles may come again
};

struct DriverCall {
  cupti::Call number;
  CallKind kind;
  uint8_t words = 0;         // of the struct, or of what its first word points to
  int8_t stream_word = -1;   // of the struct; -1: the default stream
  int8_t written_word = -1;  // the one pointer that is written through; -1: each may be
};

std::span<const DriverCall> driver_calls();
const DriverCall* driver_call(uint32_t number);  // null: none of them

// The arguments of those that are read by name, in order, as CUPTI lays them out (generated_cuda_meta.h).
struct LaunchArguments {
  CUfunction function;
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  CUstream stream;
  void** parameters;
  void** extra;  // cuLaunchCooperativeKernel has none
};
struct LaunchExArguments {
  const CUlaunchConfig* config;
  CUfunction function;
  void** parameters;
  void** extra;
};
struct InstantiateArguments {
  CUgraphExec* result;
  CUgraph graph;
};
struct ExecUpdateArguments {
  CUgraphExec graph_exec;
  CUgraph graph;
};
struct ExecSetArguments {
  CUgraphExec graph_exec;
  CUgraphNode node;
  const void* parameters;
};

}  // namespace tierpage
