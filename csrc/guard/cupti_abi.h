// The part of CUPTI that the guard needs, declared here: its library comes with torch, its headers do not. Names,
// numbers and layouts are those of NVIDIA's documentation of CUPTI ("Callback API") and hold for CUPTI 12 and 13.
#pragma once

#include <cstdint>

namespace tierpage::cupti {

using Result = int;  // 0: success
using Subscriber = struct OpaqueSubscriber*;

enum : int { kSuccess = 0 };
enum Domain : int { kDriverApi = 1 };
enum Site : int { kEnter = 0, kExit = 1 };

struct CallbackData {
  Site site;
  const char* function_name;
  const void* parameters;   // the arguments of the driver's function, one after another, as a struct
  void* return_value;       // at kExit: points to the CUresult that the caller gets
  const char* symbol_name;  // of a launch: the kernel, mangled
  void* context;
  uint32_t context_id;
  uint64_t* correlation_data;  // of this call alone: kept from kEnter to kExit
  uint32_t correlation_id;
};

using Callback = void (*)(void* user, Domain domain, uint32_t call, const CallbackData* data);

struct Library {
  Result (*subscribe)(Subscriber*, Callback, void* user) = nullptr;
  Result (*unsubscribe)(Subscriber) = nullptr;
  Result (*enable_callback)(uint32_t on, Subscriber, Domain, uint32_t call) = nullptr;
  Result (*get_result_string)(Result, const char**) = nullptr;
};

// Numbers of driver functions. _ptsz and _ptds: the same with a default stream per thread.
enum Call : uint32_t {
  kMemcpyHtoD = 276,
  kMemcpyHtoDAsync = 277,
  kMemcpyDtoH = 278,
  kMemcpyDtoHAsync = 279,
  kMemcpyDtoD = 280,
  kMemcpyDtoDAsync = 281,
  kMemcpyAtoD = 284,
  kMemcpyDtoA = 285,
  kMemcpy2D = 287,
  kMemcpy2DUnaligned = 288,
  kMemcpy2DAsync = 289,
  kMemcpy3D = 290,
  kMemcpy3DAsync = 291,
  kMemcpy = 305,
  kMemcpyAsync = 306,
  kMemcpyPeer = 318,
  kMemcpyPeerAsync = 319,
  kMemcpy3DPeer = 320,
  kMemcpy3DPeerAsync = 321,
  kMemcpyHtoDPtds = 397,
  kMemcpyDtoHPtds = 398,
  kMemcpyDtoDPtds = 399,
  kMemcpyDtoAPtds = 400,
  kMemcpyAtoDPtds = 401,
  kMemcpy2DPtds = 405,
  kMemcpy2DUnalignedPtds = 406,
  kMemcpy3DPtds = 407,
  kMemcpyPtds = 408,
  kMemcpyPeerPtds = 409,
  kMemcpy3DPeerPtds = 410,
  kMemsetD8 = 249,
  kMemsetD16 = 250,
  kMemsetD32 = 251,
  kMemsetD2D8 = 252,
  kMemsetD2D16 = 253,
  kMemsetD2D32 = 254,
  kMemsetD8Async = 216,
  kMemsetD16Async = 218,
  kMemsetD32Async = 220,
  kMemsetD2D8Async = 222,
  kMemsetD2D16Async = 224,
  kMemsetD2D32Async = 226,
  kMemsetD8Ptds = 411,
  kMemsetD16Ptds = 412,
  kMemsetD32Ptds = 413,
  kMemsetD2D8Ptds = 414,
  kMemsetD2D16Ptds = 415,
  kMemsetD2D32Ptds = 416,
  kMemcpyAsyncPtsz = 418,
  kMemcpyHtoDAsyncPtsz = 421,
  kMemcpyDtoHAsyncPtsz = 422,
  kMemcpyDtoDAsyncPtsz = 423,
  kMemcpy2DAsyncPtsz = 424,
  kMemcpy3DAsyncPtsz = 425,
  kMemcpyPeerAsyncPtsz = 426,
  kMemcpy3DPeerAsyncPtsz = 427,
  kMemsetD8AsyncPtsz = 428,
  kMemsetD16AsyncPtsz = 429,
  kMemsetD32AsyncPtsz = 430,
  kMemsetD2D8AsyncPtsz = 431,
  kMemsetD2D16AsyncPtsz = 432,
  kMemsetD2D32AsyncPtsz = 433,
  kLaunchKernel = 307,
  kLaunchKernelPtsz = 442,
  kLaunchCooperativeKernel = 477,
  kLaunchCooperativeKernelPtsz = 478,
  kLaunchKernelEx = 652,
  kLaunchKernelExPtsz = 653,
  kGraphInstantiate = 513,
  kGraphInstantiateV2 = 578,
  kGraphInstantiateWithFlags = 643,
  kGraphInstantiateWithParams = 656,
  kGraphInstantiateWithParamsPtsz = 657,
  kGraphLaunch = 514,
  kGraphLaunchPtsz = 515,
  kGraphExecDestroy = 516,
  kGraphExecUpdate = 561,
  kGraphExecUpdateV2 = 696,
  kGraphExecKernelNodeSetParams = 538,
  kGraphExecKernelNodeSetParamsV2 = 692,
  kGraphExecNodeSetParams = 714,
  kStreamBeginCapture = 495,
  kStreamBeginCapturePtsz = 496,
  kStreamBeginCaptureV2 = 539,
  kStreamBeginCaptureV2Ptsz = 540,
  kStreamBeginCaptureToGraph = 720,
  kStreamBeginCaptureToGraphPtsz = 721,
  kStreamEndCapture = 497,
  kStreamEndCapturePtsz = 498,
  kModuleUnload = 22,
  kLibraryUnload = 680,
};

}  // namespace tierpage::cupti
