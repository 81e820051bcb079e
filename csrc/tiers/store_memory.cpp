// MemoryStore: the NVMe tier's interface on plain RAM, as asynchronous as a disk, for tests and for machines without
// one. Its memory comes page by page on the first write, so a large capacity costs nothing until it is used.
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "tiers/block_store.h"
#include "tiers/store_workers.h"
#include "tiers/system_error.h"

namespace tierpage {
namespace {

constexpr uint64_t kAlignment = 4096;  // the same as a disk's, so that what runs here runs there
constexpr int kWorkerCount = 4;

class MemoryStore final : public BlockStore {
 public:
  MemoryStore(std::byte* memory, uint64_t capacity_bytes)
      : memory_(memory, capacity_bytes), capacity_bytes_(capacity_bytes),
        workers_({capacity_bytes, kAlignment, kPieceBytesMax},
                 [this](StoreOperation operation, uint64_t offset, uint64_t bytes, std::byte* buffer) {
                   if (operation == StoreOperation::kRead) {
                     memcpy(buffer, memory_.begin + offset, bytes);
                   } else {
                     memcpy(memory_.begin + offset, buffer, bytes);
                   }
                   return Status::success();
                 }) {}

  Status start() { return workers_.start(kWorkerCount); }
  std::string description() const override {
    return "memory of " + std::to_string(capacity_bytes_) + " bytes, nothing reaches a disk";
  }
  uint64_t capacity_bytes() const override { return capacity_bytes_; }
  uint64_t alignment_bytes() const override { return kAlignment; }
  Status submit(const StoreRequest& request) override { return workers_.submit(request); }
  size_t poll(std::vector<StoreCompletion>& completions) override { return workers_.poll(completions); }
  void set_wake(void (*wake)(void*), void* context) override { workers_.set_wake(wake, context); }

 private:
  struct Mapping {
    Mapping(std::byte* memory, uint64_t size) : begin(memory), bytes(size) {}
    ~Mapping() { munmap(begin, bytes); }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    std::byte* const begin;
    const uint64_t bytes;
  };

  Mapping memory_;
  const uint64_t capacity_bytes_;
  StoreWorkers workers_;  // last: its threads use the memory
};

}  // namespace

Status make_memory_store(uint64_t capacity_bytes, std::unique_ptr<BlockStore>* store) {
  if (capacity_bytes == 0 || capacity_bytes > (uint64_t{1} << 60)) {
    return Status::error(StatusCode::kInvalidArgument,
                         "memory store of " + std::to_string(capacity_bytes) + " bytes: give at least 1");
  }
  const uint64_t rounded = round_up(capacity_bytes, kAlignment);
  void* memory = mmap(nullptr, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return Status::error(StatusCode::kStorageFull,
                         "memory store of " + std::to_string(rounded) + " bytes: " + describe_system_error(errno),
                         errno);
  }
  auto made = std::make_unique<MemoryStore>(static_cast<std::byte*>(memory), rounded);
  Status status = made->start();
  if (status.ok()) *store = std::move(made);
  return status;
}

}  // namespace tierpage
