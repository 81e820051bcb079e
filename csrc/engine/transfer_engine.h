// Executes the pager's actions: creates, maps and unmaps frames, copies pages between the tiers, watches fences; and
// collects what has finished.
//
// Owns: the table of transfers under way, the queue of pieces per direction, the staging ring. Borrows the backend, the
// arena and the store. Used by the pager thread only, never under the runtime's mutex.
//
// A transfer is cut into pieces of at most piece_bytes; at most kSubmitted pieces per direction are with the device at
// a time, urgent transfers first, because the order of copies on a link cannot be changed once they are submitted.
// A piece between DEVICE and NVMe passes through one slot of the ring: disk request and device copy, one after the
// other, overlapping with those of other pieces. Where the store reaches the device's memory it is one disk request.
// The content of a sourced page stands anywhere in its file: the aligned range that covers it is read into the slot, and
// the device copy begins where the content does. What the page has beyond the content is zero.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/pager/pager.h"
#include "engine/event_log.h"
#include "engine/link_meter.h"
#include "engine/staging_ring.h"
#include "tiers/block_store.h"
#include "tiers/device_backend.h"
#include "tiers/host_arena.h"
#include "tiers/source_files.h"

namespace tierpage {

// What happened since the last look, each list in order of time (steady clock).
struct Finished {
  struct Arrival {
    TransferId transfer;
    ArrivalStage stage;
    int64_t at_ns;
  };
  struct Transfer {
    TransferId id;
    TransferResult result;
    int64_t at_ns;
  };
  std::vector<Arrival> arrivals;  // stages that transfers have reached
  std::vector<Transfer> transfers;
  struct Recorded {
    StreamId stream;
    Fence fence;
    bool refused;
  };
  std::vector<Fence> fences;
  std::vector<Recorded> recorded;  // fences that the pager asked for
  std::vector<DeviceBackend::OpTime> times;  // of operators, by position in the trace
  bool empty() const { return transfers.empty() && fences.empty() && recorded.empty(); }
  void clear() {
    arrivals.clear();
    transfers.clear();
    fences.clear();
    recorded.clear();
    times.clear();
  }
};

// Transfers of which some piece is with the device or the disk and has not come back for long.
struct StuckTransfers {
  size_t count = 0;
  uint64_t bytes = 0;       // of their pages
  int64_t oldest_ns = 0;    // for how long the oldest piece has been away
  TransferId oldest;
  std::string text;         // which page, which way, which piece
};

class TransferEngine {
 public:
  TransferEngine(DeviceBackend& backend, HostArena* arena, BlockStore* store, StagingRing* ring, EventLog& log,
                 uint64_t piece_bytes, bool store_reaches_device = false);

  void execute(const Action& action, Finished& finished);
  void poll(Finished& finished);
  bool idle() const { return flights_.empty() && watched_.empty(); }
  // Something is under way whose end is only seen by polling.
  bool must_poll() const;
  // Both may be null. While something is under way the same as before.
  void set_sources(SourceFiles* sources, StagingRing* ring) {
    sources_ = sources;
    ring_ = ring;
  }
  // The lower tiers are gone from here on (the runtime closed); nothing may be under way.
  void detach_lower_tiers();
  LinkUses link_uses(int64_t now_ns) const { return meter_.uses(now_ns); }
  std::string queue_state() const;  // for messages
  StuckTransfers stuck(int64_t now_ns, int64_t patience_ns) const;

 private:
  enum class Step : uint8_t { kCopyToDevice, kCopyToHost, kRead, kWrite };  // each on the link of the same number
  static_assert(static_cast<int>(Step::kCopyToDevice) == static_cast<int>(Link::kToDevice) &&
                static_cast<int>(Step::kCopyToHost) == static_cast<int>(Link::kToHost) &&
                static_cast<int>(Step::kRead) == static_cast<int>(Link::kNvmeRead) &&
                static_cast<int>(Step::kWrite) == static_cast<int>(Link::kNvmeWrite) && kLinkCount == 4);
  struct Flight {
    Action action;
    uint32_t pieces_left = 0;
    Status status;
    int64_t start_ns = 0;
  };
  struct Piece {
    TransferId transfer;
    Step first = Step::kCopyToDevice;   // what comes first
    bool second = false;                // the second half (the other side of a staging slot) is under way
    bool staged = false;                // passes through the ring
    bool sourced = false;               // read from a source: nvme_offset is in its address space
    uint64_t source_bytes = 0;          // of `bytes`; zeros follow
    int slot = -1;
    uint64_t device_offset = 0;
    void* host = nullptr;
    uint64_t nvme_offset = 0;
    uint64_t bytes = 0;
    int64_t issued_ns = 0;              // since when it is with the device or the disk; 0: it waits here
  };

  void execute_map(const Action& action, Finished& finished);
  uint64_t piece_limit(const Action& action, bool staged, bool sourced) const;
  static uint64_t lead_of(const Piece& piece);
  void zero_rest(const Piece& piece);
  bool bring_frame(const Action& action, TransferResult& result, Finished& finished);
  void cut(const Action& action);
  void add_piece(const Action& action, const Piece& piece);
  void pump(Finished& finished);
  void pump_once(Finished& finished);
  void collect_copies(Finished& finished);
  bool start(uint32_t piece_index, Finished& finished);
  Status issue(uint32_t piece_index);
  void piece_done(uint32_t piece_index, const Status& status, Finished& finished);
  void finish_flight(TransferId id, Finished& finished);
  Step current_step(const Piece& piece) const;
  static Link link_of(Step step) { return static_cast<Link>(step); }

  // Up: enough that the link never idles between two looks. Down: few small pieces, because a change of access rights
  // waits until the engine that copies down has nothing to do or has used up its time slice of a millisecond
  // (bench/vmm_probe.cu). Nobody gives it more while the pager thread waits for the driver, so two of 8 MiB cost 0.3 ms.
  static constexpr int kSubmitted[2] = {3, 2};
  static constexpr uint64_t kDownPieceBytes = 8 * kMiB;
  DeviceBackend& backend_;
  HostArena* arena_;
  BlockStore* store_;
  StagingRing* ring_;
  SourceFiles* sources_ = nullptr;
  EventLog& log_;
  uint64_t piece_bytes_;
  bool store_reaches_device_;
  std::unordered_map<TransferId, Flight> flights_;
  std::vector<Piece> pieces_;
  std::vector<uint32_t> unused_pieces_;
  std::deque<uint32_t> waiting_[4];   // by first step
  std::deque<uint32_t> second_half_[2];  // staged pieces ready for their device copy, by CopyDirection
  int submitted_[2] = {0, 0};         // device copies under way, by CopyDirection
  size_t disk_requests_ = 0;
  bool pump_again_ = false;              // a piece became ready for its second half without an event
  LinkMeter meter_;
  std::vector<Fence> watched_;
  std::vector<CopyCompletion> copy_completions_;
  std::vector<StoreCompletion> store_completions_;
};

}  // namespace tierpage
