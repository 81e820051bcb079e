// Implements the queue and the worker threads that the stores share.
#include "tiers/store_workers.h"

#include <algorithm>
#include <utility>

#include "tiers/quiet_thread.h"

namespace tierpage {

StoreWorkers::~StoreWorkers() {
  {
    LockGuard lock(mutex_);
    stopping_ = true;
  }
  work_available_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

Status StoreWorkers::start(int worker_count) {
  for (int i = 0; i < worker_count; ++i) {
    std::thread thread;
    Status status = start_quiet_thread("tierpage-disk", [this] { work(); }, &thread);
    if (!status.ok()) return status;  // those already started are joined by the destructor
    threads_.push_back(std::move(thread));
  }
  return Status::success();
}

Status StoreWorkers::check(const StoreRequest& request) const {
  const uint64_t mask = limits_.alignment_bytes - 1;
  const auto address = reinterpret_cast<uintptr_t>(request.buffer);
  const std::string what =
      "request of " + std::to_string(request.bytes) + " bytes at offset " + std::to_string(request.offset);
  if (request.buffer == nullptr || request.bytes == 0) {
    return Status::error(StatusCode::kInvalidArgument, what + " has no buffer or no bytes");
  }
  if (((request.offset | request.bytes | address) & mask) != 0) {
    return Status::error(StatusCode::kInvalidArgument, what + " is not aligned to " +
                                                           std::to_string(limits_.alignment_bytes) +
                                                           " in offset, size and address");
  }
  // Compared this way round because offset + bytes may wrap.
  if (request.offset > limits_.capacity_bytes || request.bytes > limits_.capacity_bytes - request.offset) {
    return Status::error(StatusCode::kInvalidArgument,
                         what + " ends beyond the capacity of " + std::to_string(limits_.capacity_bytes));
  }
  return Status::success();
}

Status StoreWorkers::submit(const StoreRequest& request) {
  Status status = check(request);
  if (!status.ok()) return status;
  RequestList incoming;  // allocated before the lock is taken
  incoming.push_back(Request{request, 0, 0, {}});
  {
    LockGuard lock(mutex_);
    queued_.splice(queued_.end(), incoming);
  }
  if (request.bytes > limits_.piece_bytes_max || (limits_.stripe_bytes > 0 && request.bytes > limits_.stripe_bytes)) {
    work_available_.notify_all();
  } else {
    work_available_.notify_one();
  }
  return Status::success();
}

size_t StoreWorkers::poll(std::vector<StoreCompletion>& completions) {
  RequestList finished;
  size_t unreported;
  {
    LockGuard lock(mutex_);
    finished.splice(finished.end(), finished_);
    unreported = queued_.size() + running_.size();
  }
  for (Request& request : finished) {
    completions.push_back(StoreCompletion{request.request.cookie, std::move(request.first_error)});
  }
  return unreported;
}

void StoreWorkers::set_wake(void (*wake)(void*), void* context) {
  LockGuard lock(mutex_);
  wake_ = wake;
  wake_context_ = context;
}

StoreWorkers::Piece StoreWorkers::take_piece_locked() {
  auto owner = queued_.begin();
  Piece piece{owner, owner->handed_out, std::min(limits_.piece_bytes_max, owner->request.bytes - owner->handed_out)};
  if (limits_.stripe_bytes > 0) {
    const uint64_t within = (owner->request.offset + piece.begin) % limits_.stripe_bytes;
    piece.bytes = std::min(piece.bytes, limits_.stripe_bytes - within);
  }
  owner->handed_out += piece.bytes;
  owner->pieces_running += 1;
  if (owner->handed_out == owner->request.bytes) running_.splice(running_.end(), queued_, owner);
  return piece;
}

bool StoreWorkers::finish_piece_locked(const Piece& piece, Status status) {
  Request& request = *piece.owner;
  request.pieces_running -= 1;
  if (!status.ok() && request.first_error.ok()) {
    request.first_error = std::move(status);
    if (request.handed_out < request.request.bytes) {  // the rest cannot save the request any more
      request.handed_out = request.request.bytes;
      running_.splice(running_.end(), queued_, piece.owner);
    }
  }
  if (request.pieces_running > 0 || request.handed_out < request.request.bytes) return false;
  finished_.splice(finished_.end(), running_, piece.owner);
  return true;
}

void StoreWorkers::work() {
  UniqueLock lock(mutex_);
  while (true) {
    work_available_.wait(lock, [this]() TP_REQUIRES(mutex_) { return stopping_ || !queued_.empty(); });
    if (stopping_) return;
    Piece piece = take_piece_locked();
    const StoreRequest request = piece.owner->request;
    lock.unlock();
    Status status = move_piece_(request.operation, request.offset + piece.begin, piece.bytes,
                                static_cast<std::byte*>(request.buffer) + piece.begin);
    lock.lock();
    if (finish_piece_locked(piece, std::move(status)) && wake_ != nullptr) {
      auto* wake = wake_;
      void* context = wake_context_;
      lock.unlock();
      wake(context);
      lock.lock();
    }
  }
}

}  // namespace tierpage
