// Launches of the page code's kernels.
//
// A ticket has a stream of its own: beside kernels that fill the device each launch waits for one of them to end, and
// codings in one line would wait one after the other. It has words besides: a plan in VRAM, which the kernels of an
// encoding pass on to one another, and a result in RAM that the device writes, so that reading it is no copy that would
// stand in line behind pages.
#include "tiers/cuda_coder.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "tiers/frame_table.h"

namespace tierpage {
namespace {

constexpr uint64_t kPlanBytes = 256;    // of which csrc/codec/page_encode.cu uses 32,
constexpr uint64_t kCodedBytesAt = 12;  // and here for the size of the code
constexpr unsigned kThreads = 256;
constexpr unsigned kSingleThreads = 1024;   // of the kernels that run as one block
constexpr uint64_t kBytesPerBlock = 16384;  // two tiles for each warp of a block
constexpr unsigned kBlocksPerProcessor = 4;

struct Result {
  volatile uint32_t coded_bytes;
  volatile uint32_t damaged;
  volatile uint32_t type;
};

class CudaCoder final : public PageCoder {
 public:
  CudaCoder(const CudaDriver& driver, CUcontext context, CoderOptions options)
      : PageCoder(std::move(options)), driver_(driver), context_(context) {}
  ~CudaCoder() override;
  Status open(CUdevice device);

  std::byte* ring() const override { return reinterpret_cast<std::byte*>(ring_); }
  Status submit_encode(const CodeRequest& request) override;
  Status submit_decode(const CodeRequest& request) override;
  void poll(std::vector<CodeCompletion>& completions) override;

 private:
  struct Lane {  // of a ticket
    CUstream stream = nullptr;
    CUevent event = nullptr;
    CodeRequest request;
    bool encodes = false;
    bool busy = false;
  };

  Status load();
  Status take_memory();
  Status run_once();
  CUdeviceptr plan_at(int ticket) const { return plans_ + kPlanBytes * static_cast<uint64_t>(ticket); }
  CUdeviceptr result_at(int ticket) const { return results_at_ + sizeof(Result) * static_cast<uint64_t>(ticket); }
  unsigned blocks_for(uint64_t page_bytes) const;
  template <class... Arguments>
  CUresult launch(CUfunction kernel, unsigned blocks, unsigned threads, CUstream stream, Arguments... arguments) {
    std::array<void*, sizeof...(Arguments)> places{&arguments...};
    return driver_.launch_kernel(kernel, blocks, 1, 1, threads, 1, 1, 0, stream, places.data(), nullptr);
  }
  static CUdeviceptr damaged_at(CUdeviceptr result) { return result + offsetof(Result, damaged); }
  static CUdeviceptr type_at(CUdeviceptr result) { return result + offsetof(Result, type); }
  CUresult encode(const CodeRequest& request, CUstream stream);
  CUresult decode(const CodeRequest& request, CUstream stream);
  Status submit(const CodeRequest& request, bool encodes);
  CodeCompletion completion_of(const Lane& lane, CUresult result) const;
  Status status_of(CUresult result, const char* call) const { return cuda_status(driver_, result, call, "page code"); }

  const CudaDriver& driver_;
  CUcontext context_;
  unsigned processors_ = 1;
  CUmodule module_ = nullptr;
  CUfunction choose_ = nullptr, write_planes_ = nullptr, place_ = nullptr, write_escapes_ = nullptr, tell_ = nullptr;
  CUfunction decode_ = nullptr, compare_ = nullptr;
  CUdeviceptr ring_ = 0, plans_ = 0, results_at_ = 0;
  Result* results_ = nullptr;
  std::array<Lane, kCodePlaces> lanes_;
  size_t busy_ = 0;
};

Status CudaCoder::load() {
  CUresult result = driver_.module_load_data(&module_, options_.kernels.data());
  if (result != CUDA_SUCCESS) {
    module_ = nullptr;
    Status status = status_of(result, "cuModuleLoadData");
    if (status.code == StatusCode::kInternal) status.code = StatusCode::kUnavailable;
    return status;
  }
  const std::pair<CUfunction*, const char*> kernels[] = {
      {&choose_, "tierpage_choose"},   {&write_planes_, "tierpage_write_planes"},
      {&place_, "tierpage_place"},     {&write_escapes_, "tierpage_write_escapes"},
      {&tell_, "tierpage_tell"},       {&decode_, "tierpage_decode"},
      {&compare_, "tierpage_compare"},
  };
  for (const auto& [kernel, name] : kernels) {
    result = driver_.module_get_function(kernel, module_, name);
    if (result != CUDA_SUCCESS) return status_of(result, "cuModuleGetFunction");
  }
  return Status::success();
}

Status CudaCoder::take_memory() {
  CUresult result = driver_.mem_alloc(&ring_, options_.ring_bytes + kPlanBytes * kCodePlaces);
  if (result != CUDA_SUCCESS) return status_of(result, "cuMemAlloc");
  plans_ = ring_ + options_.ring_bytes;
  void* results = nullptr;
  result = driver_.mem_host_alloc(&results, sizeof(Result) * kCodePlaces, CU_MEMHOSTALLOC_DEVICEMAP);
  if (result != CUDA_SUCCESS) return status_of(result, "cuMemHostAlloc");
  results_ = static_cast<Result*>(results);
  result = driver_.mem_host_get_device_pointer(&results_at_, results, 0);
  return result == CUDA_SUCCESS ? Status::success() : status_of(result, "cuMemHostGetDevicePointer");
}

// The driver loads a kernel when it is first launched, and may wait for all that runs: not in the middle of a program.
Status CudaCoder::run_once() {
  const CUstream stream = lanes_[0].stream;
  CodeRequest request;
  request.page = ring();
  request.page_bytes = std::min<uint64_t>(options_.ring_bytes / 2, kBytesPerBlock);
  request.code = ring() + request.page_bytes;
  request.code_bytes = request.page_bytes;
  CUresult result = driver_.memset_async(ring_, 0, request.page_bytes, stream);
  if (result == CUDA_SUCCESS) result = encode(request, stream);
  if (result == CUDA_SUCCESS) result = decode(request, stream);
  if (result == CUDA_SUCCESS) result = driver_.stream_synchronize(stream);
  return result == CUDA_SUCCESS ? Status::success() : status_of(result, "running the page code");
}

Status CudaCoder::open(CUdevice device) {
  CudaContextGuard guard(driver_, context_);
  if (!guard.ok()) return guard.status();
  int processors = 0, least = 0, most = 0;
  if (driver_.device_get_attribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device) == CUDA_SUCCESS) {
    processors_ = static_cast<unsigned>(std::max(processors, 1));
  }
  if (driver_.ctx_get_stream_priority_range(&least, &most) != CUDA_SUCCESS) least = most = 0;
  if (Status status = load(); !status.ok()) return status;
  if (Status status = take_memory(); !status.ok()) return status;
  // First in line: a page that is decoded late keeps an operator waiting, and both take a few microseconds.
  for (Lane& lane : lanes_) {
    CUresult result = driver_.stream_create_with_priority(&lane.stream, CU_STREAM_NON_BLOCKING, most);
    if (result != CUDA_SUCCESS) {
      lane.stream = nullptr;
      return status_of(result, "cuStreamCreateWithPriority");
    }
    result = driver_.event_create(&lane.event, CU_EVENT_DISABLE_TIMING);
    if (result != CUDA_SUCCESS) {
      lane.event = nullptr;
      return status_of(result, "cuEventCreate");
    }
  }
  return run_once();
}

CudaCoder::~CudaCoder() {
  CudaContextGuard guard(driver_, context_);
  if (!guard.ok()) return;  // the process ends, or this is a fork: the driver takes everything back by itself
  for (const Lane& lane : lanes_) {
    if (lane.stream != nullptr) {
      (void)driver_.stream_synchronize(lane.stream);
      (void)driver_.stream_destroy(lane.stream);
    }
    if (lane.event != nullptr) (void)driver_.event_destroy(lane.event);
  }
  if (ring_ != 0) (void)driver_.mem_free(ring_);
  if (results_ != nullptr) (void)driver_.mem_free_host(results_);
  if (module_ != nullptr) (void)driver_.module_unload(module_);
}

unsigned CudaCoder::blocks_for(uint64_t page_bytes) const {
  const uint64_t blocks = std::max<uint64_t>(page_bytes / kBytesPerBlock, 1);
  return static_cast<unsigned>(std::min<uint64_t>(blocks, uint64_t{kBlocksPerProcessor} * processors_));
}

CUresult CudaCoder::encode(const CodeRequest& request, CUstream stream) {
  const auto page = reinterpret_cast<CUdeviceptr>(request.page);
  const auto code = reinterpret_cast<CUdeviceptr>(request.code);
  const CUdeviceptr plan = plan_at(request.ticket), told = result_at(request.ticket);
  const auto page_bytes = static_cast<unsigned long long>(request.page_bytes);
  const auto room = static_cast<unsigned long long>(request.code_bytes);
  const unsigned blocks = blocks_for(request.page_bytes);
  CUresult result = launch(choose_, 1, kSingleThreads, stream, page, page_bytes, room, 0u, plan);
  if (result == CUDA_SUCCESS) result = launch(write_planes_, blocks, kThreads, stream, page, page_bytes, code, plan);
  if (result == CUDA_SUCCESS) result = launch(place_, 1, kSingleThreads, stream, page, page_bytes, code, room, plan);
  if (result == CUDA_SUCCESS) result = launch(write_escapes_, blocks, kThreads, stream, page, page_bytes, code, plan);
  if (result == CUDA_SUCCESS && options_.check) {
    result = launch(compare_, blocks, kThreads, stream, code, plan + kCodedBytesAt, page, page_bytes, damaged_at(told));
  }
  return result == CUDA_SUCCESS ? launch(tell_, 1, 1, stream, plan, told, type_at(told)) : result;
}

CUresult CudaCoder::decode(const CodeRequest& request, CUstream stream) {
  const auto page = reinterpret_cast<CUdeviceptr>(request.page);
  const auto page_bytes = static_cast<unsigned long long>(request.page_bytes);
  const auto code = reinterpret_cast<CUdeviceptr>(request.code);
  const auto code_bytes = static_cast<unsigned long long>(request.code_bytes);
  return launch(decode_, blocks_for(request.page_bytes), kThreads, stream, code, code_bytes, page, page_bytes,
                damaged_at(result_at(request.ticket)));
}

Status CudaCoder::submit(const CodeRequest& request, bool encodes) {
  Lane& lane = lanes_[static_cast<size_t>(request.ticket)];
  TP_ASSERT(!lane.busy);
  CudaContextGuard guard(driver_, context_);
  if (!guard.ok()) return guard.status();
  Result& told = results_[request.ticket];
  told.coded_bytes = 0;
  told.damaged = 0;
  told.type = 0;
  CUresult result = encodes ? encode(request, lane.stream) : decode(request, lane.stream);
  if (result == CUDA_SUCCESS) result = driver_.event_record(lane.event, lane.stream);
  if (result != CUDA_SUCCESS) {
    // A part may be under way, and the caller takes an error for "nothing touches my memory": wait it out.
    (void)driver_.stream_synchronize(lane.stream);
    return status_of(result, "cuLaunchKernel");
  }
  lane.request = request;
  lane.encodes = encodes;
  lane.busy = true;
  ++busy_;
  return Status::success();
}

Status CudaCoder::submit_encode(const CodeRequest& request) { return submit(request, true); }
Status CudaCoder::submit_decode(const CodeRequest& request) { return submit(request, false); }

CodeCompletion CudaCoder::completion_of(const Lane& lane, CUresult result) const {
  const Result& told = results_[lane.request.ticket];
  CodeCompletion ended{lane.request.cookie, Status::success(), lane.encodes, lane.encodes ? told.coded_bytes : 0u};
  if (result != CUDA_SUCCESS) {
    ended.status = status_of(result, lane.encodes ? "coding a page" : "decoding a page");
  } else if (told.damaged != 0) {
    const std::string page = "a page of " + format_bytes(lane.request.page_bytes);
    ended.status =
        Status::error(StatusCode::kCorruptPage, lane.encodes ? "the code of " + page + " does not decode to it"
                                                             : "what is kept of " + page + " is no code of it");
  }
  if (ended.coded_bytes > 0 && told.type < kElementTypes) ended.type = static_cast<ElementType>(told.type);
  return ended;
}

void CudaCoder::poll(std::vector<CodeCompletion>& completions) {
  if (busy_ == 0) return;
  CudaContextGuard guard(driver_, context_);
  for (Lane& lane : lanes_) {
    if (!lane.busy) continue;
    const CUresult result = driver_.event_query(lane.event);
    if (cuda_not_finished(result)) continue;
    completions.push_back(completion_of(lane, result));
    lane.busy = false;
    --busy_;
  }
}

}  // namespace

Status make_cuda_coder(const CudaDriver& driver, CUcontext context, CUdevice device, const CoderOptions& options,
                       std::unique_ptr<PageCoder>* coder) {
  auto made = std::make_unique<CudaCoder>(driver, context, options);
  if (Status status = made->open(device); !status.ok()) return status;
  *coder = std::move(made);
  return Status::success();
}

}  // namespace tierpage
