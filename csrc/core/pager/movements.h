// Movements of pages between tiers: begun here, each with the action that the executor is given, and counted while they
// run.
//
// A row changes its movement here and where completions come back (Pager::transfer_done), nowhere else.
//
// Invariants (check_invariants): under way = pages whose movement is not none; arriving, descending and spilling bytes
//   = bytes of the pages that map or are fetched, are written back, are spilled (those that they take in HOST).
#pragma once

#include <cstdint>
#include <vector>

#include "core/pager/events.h"
#include "core/pager/memory.h"

namespace tierpage {

class Movements {
 public:
  explicit Movements(Memory& memory) : memory_(memory) {}

  // --- beginnings ---------------------------------------------------------------------------------------------------
  // False if no frame is free. urgent: an operator waits for the page.
  bool start_arrival(PageId id, bool urgent);
  bool start_overflow(PageId id);  // into a frame in HOST; false if there is no memory for one
  // There is room in `target`. code: its code may go there instead of it.
  void start_write_back(PageId id, Tier target, bool code = true);
  void start_spill(PageId id);
  void start_stage(PageId id);
  void start_unmap(PageId id);
  bool begin_read(PageId id);  // somebody outside reads the copy in HOST; false: no copy there that is at rest

  // --- ends ---------------------------------------------------------------------------------------------------------
  PageId page_of(TransferId transfer) const;  // of a movement under way
  void arrival_reached(TransferId transfer, ArrivalStage stage);
  void ended(const Page& page);  // before its row is told
  // A copy that has arrived, in the bytes that it has in the lower tier. Returns what a spill file got.
  uint64_t count_copy(const Page& page, Movement movement);
  void return_frame(FrameId frame);
  // The device refused the frame: it is fuller than the budget says (another program?). Goes on with what it gave so
  // far. A frame in HOST that was refused says nothing of the device.
  void frame_refused(FrameId frame);

  // An operator is granted the right to write the page, or it is given new content.
  void allow_writes(PageId id) {
    if (memory_.pages[id].guarded) unguard(id);
  }

  // --- frames and fences --------------------------------------------------------------------------------------------
  void release(const std::vector<FrameId>& frames);
  void release_spare();  // frames in HOST that nobody uses
  void set_device_capacity(uint64_t bytes) { release(memory_.device.set_capacity(bytes)); }
  void watch(Fence fence);
  void record_fences(const std::vector<StreamId>& streams);

  // --- looks --------------------------------------------------------------------------------------------------------
  void take_actions(std::vector<Action>& actions);
  bool has_actions() const { return !actions_.empty(); }
  uint64_t under_way() const { return under_way_; }
  uint64_t arriving_bytes() const { return arriving_bytes_; }
  uint64_t descending_bytes() const { return descending_bytes_; }
  uint64_t spilling_bytes() const { return spilling_bytes_; }  // whose RAM comes free
  void check_invariants() const;

 private:
  Action& push(ActionKind kind, PageId id);
  void start_arrival_in(PageId id, DevicePool::Taken taken, bool urgent);
  void note_lent();
  void unguard(PageId id);

  Memory& memory_;
  std::vector<Action> actions_;
  uint64_t under_way_ = 0;
  uint64_t arriving_bytes_ = 0;
  uint64_t descending_bytes_ = 0;
  uint64_t spilling_bytes_ = 0;
};

}  // namespace tierpage
