// The asynchronous half that every store shares: a queue of requests, worker threads that move pieces of them, and
// the list of what has finished.
//
// Owns its threads. A request is in exactly one of three lists:
//   queued_    some of its bytes were not handed to a worker yet      handed_out <  bytes
//   running_   all of its bytes were handed out, some are moving      handed_out == bytes, pieces_running > 0
//   finished_  nothing of it moves any more, poll() has not seen it   pieces_running == 0
// The mutex guards the lists only; it is never held while a piece moves or while wake runs.
#pragma once

#include <functional>
#include <list>
#include <thread>
#include <vector>

#include "locks/mutex.h"
#include "tiers/block_store.h"

namespace tierpage {

inline constexpr uint64_t kPieceBytesMax = 4 * kMiB;  // that one worker moves in one go

class StoreWorkers {
 public:
  struct Limits {
    uint64_t capacity_bytes = 0;
    uint64_t alignment_bytes = 4096;
    uint64_t piece_bytes_max = kPieceBytesMax;  // multiple of alignment_bytes
    uint64_t stripe_bytes = 0;                  // no piece crosses a multiple of it; 0: there is none
  };
  // Moves one piece completely; runs in a worker thread, several at a time.
  using MovePiece = std::function<Status(StoreOperation operation, uint64_t offset, uint64_t bytes, std::byte* buffer)>;

  StoreWorkers(const Limits& limits, MovePiece move_piece) : limits_(limits), move_piece_(std::move(move_piece)) {}
  ~StoreWorkers();  // waits for the pieces that move, drops the rest
  StoreWorkers(const StoreWorkers&) = delete;
  StoreWorkers& operator=(const StoreWorkers&) = delete;

  Status start(int worker_count);
  Status submit(const StoreRequest& request);
  size_t poll(std::vector<StoreCompletion>& completions);
  void set_wake(void (*wake)(void*), void* context);

 private:
  struct Request {
    StoreRequest request;
    uint64_t handed_out = 0;
    int pieces_running = 0;
    Status first_error;
  };
  using RequestList = std::list<Request>;
  struct Piece {
    RequestList::iterator owner;
    uint64_t begin = 0;
    uint64_t bytes = 0;
  };

  Status check(const StoreRequest& request) const;
  void work();
  Piece take_piece_locked() TP_REQUIRES(mutex_);
  // true: the whole request is finished
  bool finish_piece_locked(const Piece& piece, Status status) TP_REQUIRES(mutex_);

  const Limits limits_;
  const MovePiece move_piece_;
  Mutex mutex_{LockRank::kStoreWorkers};
  Condition work_available_;
  RequestList queued_ TP_GUARDED_BY(mutex_);
  RequestList running_ TP_GUARDED_BY(mutex_);
  RequestList finished_ TP_GUARDED_BY(mutex_);
  bool stopping_ TP_GUARDED_BY(mutex_) = false;
  void (*wake_)(void*) TP_GUARDED_BY(mutex_) = nullptr;
  void* wake_context_ TP_GUARDED_BY(mutex_) = nullptr;
  std::vector<std::thread> threads_;
};

}  // namespace tierpage
