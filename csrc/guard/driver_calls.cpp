// The table of driver_calls.h.
#include "guard/driver_calls.h"

#include <cuda.h>

#include <algorithm>
#include <array>

namespace tierpage {
namespace {

using enum CallKind;

constexpr uint8_t kWords2D = sizeof(CUDA_MEMCPY2D) / 8;
constexpr uint8_t kWords3D = sizeof(CUDA_MEMCPY3D) / 8;
constexpr uint8_t kWords3DPeer = sizeof(CUDA_MEMCPY3D_PEER) / 8;

constexpr auto kCalls = std::to_array<DriverCall>({
    {cupti::kLaunchKernel, kLaunch},
    {cupti::kLaunchKernelPtsz, kLaunch},
    {cupti::kLaunchCooperativeKernel, kLaunch},
    {cupti::kLaunchCooperativeKernelPtsz, kLaunch},
    {cupti::kLaunchKernelEx, kLaunchEx},
    {cupti::kLaunchKernelExPtsz, kLaunchEx},
    {cupti::kGraphLaunch, kGraphLaunch, 2, 1},
    {cupti::kGraphLaunchPtsz, kGraphLaunch, 2, 1},
    {cupti::kGraphInstantiate, kInstantiate},
    {cupti::kGraphInstantiateV2, kInstantiate},
    {cupti::kGraphInstantiateWithFlags, kInstantiate},
    {cupti::kGraphInstantiateWithParams, kInstantiate},
    {cupti::kGraphInstantiateWithParamsPtsz, kInstantiate},
    {cupti::kGraphExecUpdate, kExecUpdate},
    {cupti::kGraphExecUpdateV2, kExecUpdate},
    {cupti::kGraphExecKernelNodeSetParams, kExecSetParams},
    {cupti::kGraphExecKernelNodeSetParamsV2, kExecSetParams},
    {cupti::kGraphExecNodeSetParams, kExecSetParams},
    {cupti::kGraphExecDestroy, kExecDestroy},
    {cupti::kStreamBeginCapture, kBeginCapture},
    {cupti::kStreamBeginCapturePtsz, kBeginCapture},
    {cupti::kStreamBeginCaptureV2, kBeginCapture},
    {cupti::kStreamBeginCaptureV2Ptsz, kBeginCapture},
    {cupti::kStreamBeginCaptureToGraph, kBeginCapture},
    {cupti::kStreamBeginCaptureToGraphPtsz, kBeginCapture},
    {cupti::kStreamEndCapture, kEndCapture},
    {cupti::kStreamEndCapturePtsz, kEndCapture},
    {cupti::kModuleUnload, kUnload},
    {cupti::kLibraryUnload, kUnload},
    {cupti::kMemcpyHtoD, kCopy, 3, -1, 0},
    {cupti::kMemcpyHtoDPtds, kCopy, 3, -1, 0},
    {cupti::kMemcpyHtoDAsync, kCopy, 4, 3, 0},
    {cupti::kMemcpyHtoDAsyncPtsz, kCopy, 4, 3, 0},
    {cupti::kMemcpyDtoH, kCopy, 3, -1, 0},
    {cupti::kMemcpyDtoHPtds, kCopy, 3, -1, 0},
    {cupti::kMemcpyDtoHAsync, kCopy, 4, 3, 0},
    {cupti::kMemcpyDtoHAsyncPtsz, kCopy, 4, 3, 0},
    {cupti::kMemcpyDtoD, kCopy, 3, -1, 0},
    {cupti::kMemcpyDtoDPtds, kCopy, 3, -1, 0},
    {cupti::kMemcpyDtoDAsync, kCopy, 4, 3, 0},
    {cupti::kMemcpyDtoDAsyncPtsz, kCopy, 4, 3, 0},
    {cupti::kMemcpyAtoD, kCopy, 4, -1, 0},
    {cupti::kMemcpyAtoDPtds, kCopy, 4, -1, 0},
    {cupti::kMemcpyDtoA, kCopy, 4, -1, 0},
    {cupti::kMemcpyDtoAPtds, kCopy, 4, -1, 0},
    {cupti::kMemcpy, kCopy, 3, -1, 0},
    {cupti::kMemcpyPtds, kCopy, 3, -1, 0},
    {cupti::kMemcpyAsync, kCopy, 4, 3, 0},
    {cupti::kMemcpyAsyncPtsz, kCopy, 4, 3, 0},
    {cupti::kMemcpyPeer, kCopy, 5, -1, 0},
    {cupti::kMemcpyPeerPtds, kCopy, 5, -1, 0},
    {cupti::kMemcpyPeerAsync, kCopy, 6, 5, 0},
    {cupti::kMemcpyPeerAsyncPtsz, kCopy, 6, 5, 0},
    {cupti::kMemcpy2D, kShapedCopy, kWords2D},
    {cupti::kMemcpy2DPtds, kShapedCopy, kWords2D},
    {cupti::kMemcpy2DUnaligned, kShapedCopy, kWords2D},
    {cupti::kMemcpy2DUnalignedPtds, kShapedCopy, kWords2D},
    {cupti::kMemcpy2DAsync, kShapedCopy, kWords2D, 1},
    {cupti::kMemcpy2DAsyncPtsz, kShapedCopy, kWords2D, 1},
    {cupti::kMemcpy3D, kShapedCopy, kWords3D},
    {cupti::kMemcpy3DPtds, kShapedCopy, kWords3D},
    {cupti::kMemcpy3DAsync, kShapedCopy, kWords3D, 1},
    {cupti::kMemcpy3DAsyncPtsz, kShapedCopy, kWords3D, 1},
    {cupti::kMemcpy3DPeer, kShapedCopy, kWords3DPeer},
    {cupti::kMemcpy3DPeerPtds, kShapedCopy, kWords3DPeer},
    {cupti::kMemcpy3DPeerAsync, kShapedCopy, kWords3DPeer, 1},
    {cupti::kMemcpy3DPeerAsyncPtsz, kShapedCopy, kWords3DPeer, 1},
    {cupti::kMemsetD8, kCopy, 3},
    {cupti::kMemsetD8Ptds, kCopy, 3},
    {cupti::kMemsetD8Async, kCopy, 4, 3},
    {cupti::kMemsetD8AsyncPtsz, kCopy, 4, 3},
    {cupti::kMemsetD16, kCopy, 3},
    {cupti::kMemsetD16Ptds, kCopy, 3},
    {cupti::kMemsetD16Async, kCopy, 4, 3},
    {cupti::kMemsetD16AsyncPtsz, kCopy, 4, 3},
    {cupti::kMemsetD32, kCopy, 3},
    {cupti::kMemsetD32Ptds, kCopy, 3},
    {cupti::kMemsetD32Async, kCopy, 4, 3},
    {cupti::kMemsetD32AsyncPtsz, kCopy, 4, 3},
    {cupti::kMemsetD2D8, kCopy, 5},
    {cupti::kMemsetD2D8Ptds, kCopy, 5},
    {cupti::kMemsetD2D8Async, kCopy, 6, 5},
    {cupti::kMemsetD2D8AsyncPtsz, kCopy, 6, 5},
    {cupti::kMemsetD2D16, kCopy, 5},
    {cupti::kMemsetD2D16Ptds, kCopy, 5},
    {cupti::kMemsetD2D16Async, kCopy, 6, 5},
    {cupti::kMemsetD2D16AsyncPtsz, kCopy, 6, 5},
    {cupti::kMemsetD2D32, kCopy, 5},
    {cupti::kMemsetD2D32Ptds, kCopy, 5},
    {cupti::kMemsetD2D32Async, kCopy, 6, 5},
    {cupti::kMemsetD2D32AsyncPtsz, kCopy, 6, 5},
});

constexpr size_t kNumbers = 1024;

// Looked up at each call: an array by number.
constexpr std::array<uint8_t, kNumbers> kPlaces = [] {
  std::array<uint8_t, kNumbers> places{};
  for (size_t i = 0; i < kCalls.size(); ++i) places[kCalls[i].number] = static_cast<uint8_t>(i + 1);
  return places;
}();
static_assert(kCalls.size() < 255);

}  // namespace

std::span<const DriverCall> driver_calls() { return kCalls; }

const DriverCall* driver_call(uint32_t number) {
  const uint8_t place = number < kNumbers ? kPlaces[number] : 0;
  return place == 0 ? nullptr : &kCalls[place - 1];
}

}  // namespace tierpage
