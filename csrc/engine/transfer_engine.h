// Executes the pager's actions: creates, maps and unmaps frames, copies pages between the tiers, watches fences; and
// collects what has finished.
//
// Owns the table of transfers under way and the queue of pieces per direction. Borrows the backend, the arena, the
// store and the staging buffers. Used by the pager thread only, never under the runtime's mutex.
//
// A transfer has a route of one hop or two (engine/route.h) and is cut into pieces, each of which walks the hops. At
// most a few pieces per direction are with the device at a time (core/model/link_limits.h), urgent transfers first,
// because the order of copies on a link cannot be changed once they are submitted. A piece of two hops passes through
// one of the staging buffers, which it holds from the first hop to the end of the second; the hops of different pieces
// overlap.
//
// A coded page also passes through a place in the coder's ring (tiers/page_coder.h), which its transfer holds from its
// beginning to its end: encoded into it before the first piece, decoded out of it behind the last one. Pieces then move
// between that place and RAM or disk. Who finds no place waits in line, urgent transfers first; of the lines the one
// that holds least is served first, and the others wait for it. What the coder fails to encode goes as it is; what it
// fails to decode twice is decoded here, by the processor, out of a copy of what lies in the ring.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/model/link_limits.h"
#include "core/pager/pager.h"
#include "engine/code_meter.h"
#include "engine/code_ring.h"
#include "engine/event_log.h"
#include "engine/link_meter.h"
#include "engine/route.h"
#include "engine/staging_buffers.h"
#include "engine/work_times.h"
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
  std::vector<Recorded> recorded;            // fences that the pager asked for
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
  uint64_t bytes = 0;     // of their pages
  int64_t oldest_ns = 0;  // for how long the oldest piece has been away
  TransferId oldest;
  std::string text;  // which page, which way, which piece
};

class TransferEngine {
 public:
  TransferEngine(DeviceBackend& backend, HostArena* arena, BlockStore* store, StagingBuffers* staging, EventLog& log,
                 bool store_reaches_device = false);

  void execute(const Action& action, Finished& finished);
  void poll(Finished& finished);
  bool idle() const { return flights_.empty() && watched_.empty(); }
  // Something is under way whose end is only seen by polling.
  bool must_poll() const;
  // Both may be null. While something is under way the same as before.
  void set_sources(SourceFiles* sources, StagingBuffers* staging) {
    sources_ = sources;
    staging_ = staging;
  }
  // The lower tiers are gone from here on (the runtime closed); nothing may be under way.
  void detach_lower_tiers();
  LinkUses link_uses(int64_t now_ns) const { return meter_.uses(now_ns); }
  CodeUses code_uses(int64_t now_ns) const { return code_meter_.uses(now_ns); }
  // What the user should know of a coder that fails: once, else empty.
  std::string take_coder_notice() { return std::exchange(coder_notice_, {}); }
  const WorkTimes& work() const { return work_; }  // mapping, copying, completing
  std::string queue_state() const;                 // for messages
  StuckTransfers stuck(int64_t now_ns, int64_t patience_ns) const;

 private:
  struct Flight {
    Action action;
    Route route;
    uint32_t pieces_left = 0;
    uint32_t copies_left = 0;  // of these, the ones whose code has not left the device
    Status status;
    int64_t start_ns = 0;
    CodeRing::Place code_place;   // in the coder's ring, from its beginning to its end
    uint64_t coded_bytes = 0;     // of the code that a write-back moves
    bool incompressible = false;  // ... or it turned out that there is none
    int64_t coding_since_ns = 0;  // with the coder; 0: it is not
    uint32_t decodings_failed = 0;
    std::unique_ptr<std::byte[]> rescue;  // RAM for the code, and behind it the page, of what the coder cannot decode
    bool fetches() const { return action.kind == ActionKind::kFetch; }
  };
  struct Piece {
    Flight* flight = nullptr;
    uint8_t hop = 0;  // of the flight's route: under way, or awaited
    int slot = -1;    // of the staging buffers
    Part part;
    void* host = nullptr;   // what the disk or the copy sees beside DEVICE and NVMe
    int64_t issued_ns = 0;  // since when it is with the device or the disk; 0: it waits here
    const Route& route() const { return flight->route; }
    Link link() const { return flight->route.hops[hop]; }
  };

  static std::string text_of(const Flight& flight);
  // Who waits for a place in the coder's ring, and what of it those hold that had waited here.
  struct CodeLine {
    std::deque<TransferId> waiting;
    uint64_t held_bytes = 0;
  };
  enum : size_t { kUp, kUpFromDisk, kDown, kCodeLines };

  void execute_map(const Action& action, Finished& finished);
  int64_t mapped_since(int64_t start_ns, uint64_t mappings);
  void collect(Finished& finished);
  static uint64_t lead_of(const Piece& piece);
  static void zero_rest(const Piece& piece);
  bool bring_frame(const Action& action, TransferResult& result, Finished& finished);
  void cut(Flight& flight);
  void add_piece(const Piece& prototype);
  void pump(Finished& finished);
  void pump_once(Finished& finished);
  void collect_copies(Finished& finished);
  bool start(uint32_t piece_index, Finished& finished);
  bool may_submit(Link link) const;
  Status submit(uint32_t piece_index, Link link);
  Status issue(uint32_t piece_index);
  void next_hop(uint32_t piece_index, Finished& finished);
  void piece_done(uint32_t piece_index, const Status& status, Finished& finished);
  void finish_flight(TransferId id, Finished& finished);

  bool wants_code(const Action& action) const;
  void wait_for_code_place(const Flight& flight);
  CodeLine& line_of(const Flight& flight);
  CodeLine* next_to_code();
  uint64_t code_bytes_wanted(const Flight& flight) const;
  void begin_coding(Finished& finished);
  uint64_t code_bytes_max(uint64_t page_bytes) const;
  Status code(Flight& flight, Coding coding);
  void collect_codes(Finished& finished);
  void encoded(Flight& flight, uint64_t code_bytes);
  void encoding_failed(Flight& flight, const Status& status, Finished& finished);
  void decode(Flight& flight, Finished& finished);
  void decoding_ended(Flight& flight, const Status& status, Finished& finished);
  void coder_failed(const Flight& flight, const Status& status);
  Status copy_code_down(Flight& flight);
  void rescue(Flight& flight, Finished& finished);
  void add_rescue_piece(Flight& flight, Link link, std::byte* host, uint64_t bytes);
  void code_left_device(Flight& flight);
  void give_place_back(Flight& flight);
  std::byte* code_of(const Flight& flight) const { return backend_.coder()->ring() + flight.code_place.offset; }
  static uint64_t content_bytes(const Piece& piece);

  static constexpr LinkLimit kLimits[2] = {kLimitUp, kLimitDown};  // by CopyDirection
  DeviceBackend& backend_;
  HostArena* arena_;
  BlockStore* store_;
  StagingBuffers* staging_;
  SourceFiles* sources_ = nullptr;
  EventLog& log_;
  bool store_reaches_device_;
  std::unordered_map<TransferId, Flight> flights_;
  std::vector<Piece> pieces_;
  std::vector<uint32_t> unused_pieces_;
  std::deque<uint32_t> waiting_[kLinkCount];  // for their first hop
  std::deque<uint32_t> waiting_in_slot_;      // for their copy to the device: the second hop, the slot is filled
  size_t submitted_[2] = {0, 0};              // device copies under way, by CopyDirection
  size_t disk_requests_ = 0;
  bool pump_again_ = false;  // a piece became ready for its second hop, or a place free, without an event
  CodeRing code_ring_;
  CodeLine code_lines_[kCodeLines];
  CodeMeter code_meter_;
  std::string coder_notice_;  // to be told
  bool coder_notice_made_ = false;
  LinkMeter meter_;
  WorkTimes work_;
  std::vector<Fence> watched_;
  std::vector<CopyCompletion> copy_completions_;
  std::vector<StoreCompletion> store_completions_;
  std::vector<CodeCompletion> code_completions_;
};

}  // namespace tierpage
