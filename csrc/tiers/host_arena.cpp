// Implements the RAM tier's memory. One range is reserved without access; the grower makes it accessible, touches it
// and locks it piece by piece, so that the cost of fresh memory is paid beside the user's work, and never for more than
// the budget.
//
// A huge page never reaches over the end of accessible memory, so an odd budget ends in small pages and is not
// exceeded. Locked memory is a prefix: after the first failed lock no further one is tried, [0, locked_bytes()) stays
// locked.
//
// What is ready is cut at once where the limit falls, under the lock; the pieces that are cut off go back to the system
// in the grower's thread, before it makes anything new: so what it makes never lies where something is still to be
// taken away.
#include "tiers/host_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>
#include <utility>
#include <vector>

#include "locks/mutex.h"
#include "tiers/frame_table.h"
#include "tiers/host_memory.h"
#include "tiers/quiet_thread.h"
#include "tiers/system_error.h"

namespace tierpage {
namespace {

constexpr uint64_t kSmallPage = 4096;
constexpr uint64_t kHugePage = 2 * kMiB;
constexpr int kTouchThreadsDefault = 8;
constexpr uint64_t kScarcePiece = 32 * kMiB;  // where less than a piece is left; a lock each, so not smaller

// A reserved address range, aligned to a huge page.
class Reservation {
 public:
  ~Reservation() {
    if (whole_ != MAP_FAILED) munmap(whole_, whole_bytes_);
  }
  Reservation() = default;
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;

  Status reserve(uint64_t bytes) {
    whole_bytes_ = round_up(bytes, kHugePage) + kHugePage;
    whole_ = mmap(nullptr, whole_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (whole_ == MAP_FAILED) {
      return Status::error(StatusCode::kUnavailable,
                           "cannot reserve " + std::to_string(whole_bytes_) + " bytes of addresses for the RAM tier: " +
                               describe_system_error(errno) + " (see ulimit -v)",
                           errno);
    }
    begin_ = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<uintptr_t>(whole_), kHugePage));
    // Advice, each useful alone; a kernel without one of them still works. A forked child must not copy pages that a
    // device or a disk is writing to, and a core dump must not hold the whole tier.
    (void)madvise(begin_, bytes, MADV_HUGEPAGE);
    (void)madvise(whole_, whole_bytes_, MADV_DONTFORK);
    (void)madvise(whole_, whole_bytes_, MADV_DONTDUMP);
    return Status::success();
  }
  std::byte* begin() const { return begin_; }

 private:
  void* whole_ = MAP_FAILED;
  uint64_t whole_bytes_ = 0;
  std::byte* begin_ = nullptr;
};

class GrowingArena final : public HostArena {
 public:
  explicit GrowingArena(const HostArenaOptions& options) : options_(options), limit_bytes_(options.capacity_bytes) {}
  ~GrowingArena() override;
  Status start();

  std::byte* base() const override { return reservation_.begin(); }
  uint64_t capacity_bytes() const override { return options_.capacity_bytes; }
  uint64_t ready_bytes() const override { return ready_bytes_.load(std::memory_order_acquire); }
  uint64_t locked_bytes() const override { return locked_bytes_.load(std::memory_order_acquire); }
  void request(uint64_t bytes) override;
  uint64_t set_limit(uint64_t bytes) override;
  void try_again() override;
  Status wait_ready(uint64_t bytes) override;
  bool growth_failed() const override;
  Status status() const override;
  void set_wake(void (*wake)(void*), void* context) override;

 private:
  struct Piece {
    uint64_t begin = 0;
    uint64_t bytes = 0;
    bool locked = false;
    uint64_t end() const { return begin + bytes; }
  };

  void grow_until_stopped();
  Status measure(Piece* piece) const;
  Status make(Piece* piece);
  Status make_accessible(const Piece& piece);
  void touch(const Piece& piece);
  void touch_part(const Piece& part);
  void lock_piece(Piece* piece);
  void give_back(const Piece& piece);
  bool wants_more() const TP_REQUIRES(mutex_) { return !growth_failed_ && requested_bytes_ > ready_bytes(); }
  void keep(const Piece& piece) TP_REQUIRES(mutex_);
  void cut() TP_REQUIRES(mutex_);

  const HostArenaOptions options_;
  Reservation reservation_;

  mutable Mutex mutex_{LockRank::kHostArena};
  Condition changed_;  // something was requested, became ready, failed, or we stop
  uint64_t requested_bytes_ TP_GUARDED_BY(mutex_) = 0;
  uint64_t limit_bytes_ TP_GUARDED_BY(mutex_);
  std::vector<Piece> pieces_ TP_GUARDED_BY(mutex_);  // side by side, [0, ready)
  std::vector<Piece> cut_off_ TP_GUARDED_BY(mutex_);
  bool growth_failed_ TP_GUARDED_BY(mutex_) = false;
  Status growth_failure_ TP_GUARDED_BY(mutex_);  // the last one
  Status lock_failure_ TP_GUARDED_BY(mutex_);
  void (*wake_)(void*) TP_GUARDED_BY(mutex_) = nullptr;
  void* wake_context_ TP_GUARDED_BY(mutex_) = nullptr;

  std::atomic<bool> stopping_{false};     // set under mutex_, also read while touching
  std::atomic<uint64_t> ready_bytes_{0};  // both written under mutex_
  std::atomic<uint64_t> locked_bytes_{0};
  bool locking_given_up_ = false;  // grower thread only
  std::thread grower_;
};

GrowingArena::~GrowingArena() {
  {
    LockGuard lock(mutex_);
    stopping_.store(true);
  }
  changed_.notify_all();
  if (grower_.joinable()) grower_.join();
  std::vector<Piece> all;
  {
    LockGuard lock(mutex_);
    all = std::move(pieces_);
    all.insert(all.end(), cut_off_.begin(), cut_off_.end());
  }
  for (const Piece& piece : all) {
    if (piece.locked && options_.unlock) options_.unlock(base() + piece.begin);
  }
}

Status GrowingArena::start() {
  Status status = reservation_.reserve(options_.capacity_bytes);
  if (!status.ok()) return status;
  return start_quiet_thread("tierpage-grower", [this] { grow_until_stopped(); }, &grower_);
}

void GrowingArena::request(uint64_t bytes) {
  {
    LockGuard lock(mutex_);
    requested_bytes_ = std::max(requested_bytes_, std::min(bytes, limit_bytes_));
  }
  changed_.notify_all();
}

uint64_t GrowingArena::set_limit(uint64_t bytes) {
  uint64_t ready = 0;
  {
    LockGuard lock(mutex_);
    limit_bytes_ = std::min(bytes, options_.capacity_bytes);
    requested_bytes_ = std::min(requested_bytes_, limit_bytes_);
    cut();
    ready = ready_bytes();
  }
  changed_.notify_all();
  return ready;
}

void GrowingArena::try_again() {
  {
    LockGuard lock(mutex_);
    growth_failed_ = false;
  }
  changed_.notify_all();
}

// What lies beyond the limit. A piece across it stays whole where it is locked, since it can only be unlocked as a
// whole.
void GrowingArena::cut() {
  const uint64_t limit = round_up(limit_bytes_, kHugePage);
  while (!pieces_.empty() && pieces_.back().begin >= limit) {
    cut_off_.push_back(pieces_.back());
    pieces_.pop_back();
  }
  if (!pieces_.empty() && !pieces_.back().locked && pieces_.back().end() > limit) {
    Piece& last = pieces_.back();
    cut_off_.push_back({limit, last.end() - limit, false});
    last.bytes = limit - last.begin;
  }
  ready_bytes_.store(pieces_.empty() ? 0 : pieces_.back().end(), std::memory_order_release);
  const auto locked = std::find_if(pieces_.rbegin(), pieces_.rend(), [](const Piece& piece) { return piece.locked; });
  locked_bytes_.store(locked == pieces_.rend() ? 0 : locked->end(), std::memory_order_release);
}

// A piece that was made while the limit fell may lie behind a gap by now.
void GrowingArena::keep(const Piece& piece) {
  std::vector<Piece>& where = piece.begin == ready_bytes() ? pieces_ : cut_off_;
  where.push_back(piece);
  cut();
}

Status GrowingArena::wait_ready(uint64_t bytes) {
  if (bytes > options_.capacity_bytes) {
    return Status::error(StatusCode::kInvalidArgument, "waiting for " + std::to_string(bytes) +
                                                           " bytes of a RAM tier of " +
                                                           std::to_string(options_.capacity_bytes));
  }
  request(bytes);
  UniqueLock lock(mutex_);
  changed_.wait(lock, [&]() TP_REQUIRES(mutex_) { return ready_bytes() >= bytes || growth_failed_ || stopping_; });
  if (ready_bytes() >= bytes) return Status::success();
  return growth_failed_ ? growth_failure_ : Status::error(StatusCode::kInterrupted, "the RAM tier is closing");
}

bool GrowingArena::growth_failed() const {
  LockGuard lock(mutex_);
  return growth_failed_;
}

Status GrowingArena::status() const {
  LockGuard lock(mutex_);
  return growth_failed_ ? growth_failure_ : lock_failure_;
}

void GrowingArena::set_wake(void (*wake)(void*), void* context) {
  LockGuard lock(mutex_);
  wake_ = wake;
  wake_context_ = context;
}

void GrowingArena::grow_until_stopped() {
  UniqueLock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this]() TP_REQUIRES(mutex_) { return stopping_ || !cut_off_.empty() || wants_more(); });
    if (stopping_) return;
    if (!cut_off_.empty()) {
      const Piece piece = cut_off_.back();
      cut_off_.pop_back();
      lock.unlock();
      give_back(piece);
      lock.lock();
      continue;
    }
    Piece piece{ready_bytes(), std::min(options_.piece_bytes, limit_bytes_ - ready_bytes())};
    lock.unlock();
    Status status = make(&piece);
    lock.lock();
    if (status.ok()) keep(piece);  // if only for the destructor to unlock
    if (stopping_) return;
    if (!status.ok()) {
      growth_failed_ = true;
      growth_failure_ = std::move(status);
    }
    auto* wake = wake_;
    void* context = wake_context_;
    changed_.notify_all();
    lock.unlock();
    if (wake != nullptr) wake(context);
    lock.lock();
  }
}

Status GrowingArena::make(Piece* piece) {
  Status status = measure(piece);
  if (status.ok()) status = make_accessible(*piece);
  if (!status.ok()) return status;
  touch(*piece);
  if (!stopping_) lock_piece(piece);
  return status;
}

// No more than what the machine has left. Without this look the kernel would find out at the first touch, and answer by
// killing some process.
Status GrowingArena::measure(Piece* piece) const {
  const DeviceMemoryInfo memory = options_.memory_info ? options_.memory_info() : host_memory_info();
  if (memory.total_bytes == 0) return Status::success();  // nobody knows
  const uint64_t room = memory.free_bytes - std::min(memory.free_bytes, kFreeMemoryMargin);
  if (room >= piece->bytes) return Status::success();
  if (room >= kScarcePiece) {
    piece->bytes = room / kScarcePiece * kScarcePiece;
    return Status::success();
  }
  return Status::error(StatusCode::kOutOfMemory, "it stays at " + format_bytes(piece->begin) + " of " +
                                                     format_bytes(options_.capacity_bytes) + ", because " +
                                                     format_bytes(memory.free_bytes) +
                                                     " of RAM are available (the machine's, or "
                                                     "its control group's), of which " +
                                                     format_bytes(kFreeMemoryMargin) +
                                                     " stay free. It grows when "
                                                     "more is free. Lower host_budget to what the machine can spare");
}

Status GrowingArena::make_accessible(const Piece& piece) {
  if (mprotect(base() + piece.begin, piece.bytes, PROT_READ | PROT_WRITE) == 0) return Status::success();
  const int error = errno;
  return Status::error(StatusCode::kUnavailable,
                       "the system gives no memory for the RAM tier beyond " + std::to_string(piece.begin) + " of " +
                           std::to_string(options_.capacity_bytes) + " bytes: " + describe_system_error(error),
                       error);
}

void GrowingArena::touch(const Piece& piece) {
  const auto threads = static_cast<uint64_t>(options_.touch_threads);
  const uint64_t part_bytes = round_up((piece.bytes + threads - 1) / threads, kHugePage);
  std::vector<std::thread> helpers;
  uint64_t done = std::min(part_bytes, piece.bytes);  // the first part is ours
  const Piece own{piece.begin, done};
  while (done < piece.bytes) {
    const Piece part{piece.begin + done, std::min(part_bytes, piece.bytes - done)};
    std::thread helper;
    if (start_quiet_thread("tierpage-touch", [this, part] { touch_part(part); }, &helper).ok()) {
      helpers.push_back(std::move(helper));
    } else {
      touch_part(part);  // slower, not wrong
    }
    done += part.bytes;
  }
  touch_part(own);
  for (std::thread& helper : helpers) helper.join();
}

void GrowingArena::touch_part(const Piece& part) {
  for (uint64_t offset = part.begin; offset < part.end(); offset += kSmallPage) {
    if (offset % kHugePage == 0 && stopping_.load(std::memory_order_relaxed)) return;
    *reinterpret_cast<volatile char*>(base() + offset) = 0;
  }
}

void GrowingArena::lock_piece(Piece* piece) {
  if (!options_.lock || locking_given_up_) return;
  Status status = options_.lock(base() + piece->begin, piece->bytes);
  piece->locked = status.ok();
  if (status.ok()) return;
  locking_given_up_ = true;
  LockGuard lock(mutex_);
  lock_failure_ = std::move(status);
}

// The addresses stay ours, without access. What the system refuses of it costs nothing but the memory.
void GrowingArena::give_back(const Piece& piece) {
  if (piece.locked && options_.unlock) options_.unlock(base() + piece.begin);
  (void)madvise(base() + piece.begin, piece.bytes, MADV_DONTNEED);
  (void)mprotect(base() + piece.begin, piece.bytes, PROT_NONE);
}

Status check_options(const HostArenaOptions& options) {
  auto refuse = [](const std::string& what) { return Status::error(StatusCode::kInvalidArgument, what); };
  constexpr uint64_t kCapacityMax = uint64_t{1} << 46;
  if (options.capacity_bytes < kSmallPage || options.capacity_bytes > kCapacityMax) {
    return refuse("RAM tier of " + std::to_string(options.capacity_bytes) + " bytes: give 4096 to " +
                  std::to_string(kCapacityMax));
  }
  if (options.piece_bytes == 0 || options.piece_bytes > kGiB) {
    return refuse("piece_bytes " + std::to_string(options.piece_bytes) + ": give 1 to 1073741824");
  }
  if (options.touch_threads < 0) {
    return refuse("touch_threads " + std::to_string(options.touch_threads) + ": give 0 or more");
  }
  return Status::success();
}

}  // namespace

Status make_host_arena(const HostArenaOptions& options, std::unique_ptr<HostArena>* arena) {
  Status status = check_options(options);
  if (!status.ok()) return status;
  HostArenaOptions effective = options;
  effective.capacity_bytes = options.capacity_bytes / kSmallPage * kSmallPage;  // down: a budget is not exceeded
  effective.piece_bytes = round_up(options.piece_bytes, kHugePage);
  if (effective.touch_threads == 0) {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    effective.touch_threads = std::clamp(cores, 1, kTouchThreadsDefault);
  }
  auto made = std::make_unique<GrowingArena>(effective);
  status = made->start();
  if (status.ok()) *arena = std::move(made);
  return status;
}

}  // namespace tierpage
