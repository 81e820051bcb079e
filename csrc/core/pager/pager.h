// The state machine that decides where every page lies: events in, actions out.
//
// No thread, clock, CUDA, torch or I/O. The owner (engine/runtime, or the simulator) calls one event at a time under
// its own lock, then takes the actions and executes them in order; what they did comes back as events. Nothing is
// assumed to have happened before its event arrives.
//
// Words. A *slot* is one thread's place for an open operator (or a pin held by the user). A slot waits for at most one
// request at a time; it is granted all pages of a request at once, or none.
//
// Life of a region: allocate -> live -> free -> cached (frames kept mapped, no content, reused by size) -> dying (its
// frames leave) -> gone. A region is evictable once it was seen as a tensor; scratch memory never is.
//
// Interleavings that matter, by number (the code refers to them):
//   1. A page is chosen as a victim, then needed again before it left: `leaving` is taken back unless it unmaps already.
//   2. A write-back is under way and the page is needed: readers are granted at once, writers wait for its end.
//   3. A region is freed while one of its pages moves: the movement runs to its end, then the page is taken apart.
//   4. A page is freed inside the operator that pins it: the region is cached at once, its row lives until the unpin.
//   5. Two operators hold pages and both wait for room: when nothing else can make progress, the younger one fails.
//   6. A fence of the last use is not finished: the page neither copies down nor unmaps before fence_done.
//   7. A movement fails: the source stays valid, the target's memory is given back, requests that cannot be served
//      because of it get the error; nobody waits for ever.
//   8. A page is written down ahead of need and stays: readers go on, a writer waits for the end of the copy (as in 2). Only
//      what may be evicted: held memory, and memory never seen as a tensor, may be written without an operator that says
//      so, and the copy would be taken for its content.
//   9. A dirty page leaves, HOST is full: it waits while another's only copy is spilled; if that fails, it goes to NVMe itself.
//
// Invariants, checked by check_invariants() after every event in tests:
//   page rows and pools: see page_table.h, frame_pool.h;
//   used bytes of each pool = sum over the pages that own memory there;
//   every frame and span has exactly one owner;
//   pins of all slots = pins of all pages;
//   no page stands twice among the hints, and every page marked as cleanable stands in that list;
//   descending bytes = bytes of the pages that are being written back; spilling bytes = of those that are being spilled;
//   a waiting slot's request is in the queue exactly once;
//   pages leave only while engaged; a page owes a fence only on streams that owe one.
#pragma once

#include <cstdint>
#include <array>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/model/config.h"
#include "core/model/frame_pool.h"
#include "core/model/page_table.h"
#include "core/pager/fence_ledger.h"
#include "core/pager/policy.h"
#include "core/future/foresight.h"
#include "core/model/region_map.h"
#include "core/model/stall_cause.h"
#include "core/model/stats.h"
#include "core/model/status.h"
#include "core/model/types.h"
#include "core/pager/write_economy.h"

namespace tierpage {

using SlotId = StrongId<struct SlotTag, uint32_t>;
using TagId = uint32_t;  // paged(tag) scopes; 0: no tag

enum class AccessMode : uint8_t { kRead, kWrite };

struct Use {
  RegionId region;
  uint64_t first_byte = 0;  // within the region
  uint64_t last_byte = 0;   // inclusive
  AccessMode mode = AccessMode::kRead;
};

enum class Outcome : uint8_t { kGranted, kWait, kFailed };

enum class ActionKind : uint8_t {
  kReleaseFrame,  // give the frame's memory back to the device
  kMap,           // (create and) map `frame` at `device_offset`
  kFetch,         // (create and) map, then copy from `source` spans into it
  kWriteBack,     // copy the mapped page to `target` spans
  kUnmap,         // unmap; the frame keeps its memory
  kSpill,         // HOST spans -> NVME spans
  kStage,         // NVME spans -> HOST spans
  kWatchFence,    // tell fence_done when `fence` has finished
  kRecordFence,   // record a fence on the stream of `fence`; tell fence_recorded or fence_refused
};

// Where a region's content lies in files that are only read: bytes of one address space, in which the executor knows each
// file's place (tiers/source_files.h). What a page has beyond the last byte is zero.
struct Source {
  uint64_t offset = 0;
  uint64_t bytes = 0;  // 0: no source, or nothing of it in this page
};

struct Action {
  ActionKind kind = ActionKind::kReleaseFrame;
  TransferId transfer;
  FrameId frame;
  bool create_frame = false;
  uint64_t device_offset = 0;
  uint64_t bytes = 0;
  Tier lower = Tier::kHost;  // source of a fetch, target of a write-back
  SpanList host;
  SpanList nvme;
  bool sourced = false;  // the NVMe copy that is read lies in `source` instead of `nvme`
  Source source;         // the page's part
  Fence fence;
  uint64_t native_stream = 0;  // of a fence to record; the owner knows it
  bool urgent = false;  // an operator waits for it
};

// What became of a movement.
struct TransferResult {
  Status status;
  bool mapped = true;         // map and fetch: the frame is in the range
  bool frame_created = true;  // map and fetch with create_frame: the frame has memory
};

struct AllocateRequest {
  uint64_t bytes = 0;
  StreamId stream = 0;
  TagId tag = 0;
  bool inside_operator = false;  // pin it for the slot's open operator
  Source source = {};            // bytes > 0: the content, of that many bytes; nothing is mapped until it is used
};

// What a request lacked when it began to wait. Pages and bytes are those that were not there.
struct WaitDetails {
  struct Part {
    RegionId region;
    uint32_t pages = 0;
    uint64_t bytes = 0;
  };
  const char* name = "";          // of the operator
  bool allocation = false;
  uint32_t pages = 0;
  uint64_t bytes = 0;
  uint64_t predicted_bytes = 0;   // of regions whose use the predictor expected soon
  TagId tag = 0;                  // of the region that lacked most
  uint32_t region_count = 0;
  std::array<Part, 4> largest{};  // of those regions, the ones that lacked most; the rest of the array is empty
};

class Pager {
 public:
  explicit Pager(const PagerConfig& config);

  // --- events from callers -------------------------------------------------------------------------------------
  SlotId add_slot();
  void remove_slot(SlotId slot);  // not waiting, nothing pinned
  // Adds the pages of `uses` to the slot. kWait: outcome() changes later.
  Outcome begin_op(SlotId slot, uint64_t operator_hash, const char* operator_name, std::span<const Use> uses);
  Outcome allocate(SlotId slot, const AllocateRequest& request);
  Outcome outcome(SlotId slot) const;
  RegionId allocated(SlotId slot) const;    // after allocate was granted
  const Status& failure(SlotId slot) const;  // after kFailed
  void cancel(SlotId slot);                  // a waiting slot stops waiting
  void end_op(SlotId slot, Fence fence);     // unpins everything of the slot; an owed fence only while not engaged()
  // A pin that an operator's end does not release: moves the slot's pins out of its operator's reach. `permanent`
  // pins do not count as work that will end by itself (interleaving 5).
  void set_permanent(SlotId slot, bool permanent);
  void free_region(RegionId region, std::span<const Fence> fences);
  void mark_seen(RegionId region) { regions_[region.value].seen = true; }
  void hold_region(RegionId region);  // a raw pointer to it escaped: resident until it is freed
  void hold_pinned(SlotId slot);        // the same for everything that the slot pins
  void note_stream_use(RegionId region, StreamId stream);

  // --- events from the executor of actions ---------------------------------------------------------------------
  void transfer_done(TransferId transfer, const TransferResult& result);
  void arrival_reached(TransferId transfer, ArrivalStage stage);  // optional: names the causes of waits
  void fence_done(Fence fence);
  void fence_recorded(StreamId stream, Fence fence);  // behind all that was queued before engaged() became true
  void fence_refused(StreamId stream);                // none can be recorded now; asked for again at a tick
  // The device worked so long on the operator whose uses stand in the trace from `position` on (op_position() before
  // end_op). Not every operator has to be timed: what was timed once is known whenever the program comes that way again.
  void op_timed(uint64_t position, double microseconds) { foresight_.trace().set_microseconds(position, microseconds); }
  void set_fetch_rate(double bytes_per_microsecond) { foresight_.set_fetch_rate(bytes_per_microsecond); }  // HOST to DEVICE, measured
  void host_space_ready(uint64_t bytes, bool growth_failed);
  // About once a second: retries what had been given up. now_seconds: since the start, for what is counted by the day.
  void tick(uint64_t now_seconds = 0);

  // --- events from a reader outside --------------------------------------------------------------------------------
  // The copy in HOST stays where it is and as it is until read_done: operators may read the page, and wait to write it.
  bool begin_read(PageId page);  // false: no copy there that is at rest
  void read_done(PageId page);

  // --- events from the user ------------------------------------------------------------------------------------
  void set_capacity(Tier tier, uint64_t bytes);
  void note_native_reserved(uint64_t bytes) { native_reserved_bytes_ = bytes; }  // for messages only
  uint64_t evict(RegionId region);     // returns bytes that will leave DEVICE
  uint64_t evict_all();                // every evictable page
  uint64_t prefetch(RegionId region);  // bytes asked for; a hint
  void release_free_frames();
  void drop_cached_regions();  // freed regions kept for reuse give their frames back

  // --- waits ----------------------------------------------------------------------------------------------------
  void on_request_waits(std::function<void()> hook) { request_waits_ = std::move(hook); }  // before it is planned for
  StallCause waiting_for(SlotId slot) const;
  WaitDetails describe_wait(SlotId slot);  // of a waiting slot

  // --- actions --------------------------------------------------------------------------------------------------
  void take_actions(std::vector<Action>& actions);
  bool has_actions() const { return !actions_.empty(); }
  bool slots_changed() { return std::exchange(slots_changed_, false); }  // some waiting slot may go on
  bool wants_planning() const { return wants_planning_; }
  void plan();  // grants, evictions, prefetches; called after a batch of events
  bool waits() const { return !waiting_.empty(); }
  // Pages leave, or did so lately. While not, all fits, nobody looks ahead, and operators may owe their fences:
  // pager_engagement.cpp.
  bool engaged() const { return engaged_; }
  uint64_t host_space_wanted() const { return host_space_wanted_; }

  // --- queries --------------------------------------------------------------------------------------------------
  RegionId region_at(uint64_t offset) const { return map_.find(offset); }
  bool region_live(RegionId id) const {
    return id.value < regions_.size() && regions_[id.value].state == RegionState::kLive;
  }
  uint64_t region_offset(RegionId region) const { return regions_[region.value].offset; }
  uint64_t region_bytes(RegionId region) const { return regions_[region.value].bytes_asked; }
  TagId region_tag(RegionId region) const { return regions_[region.value].tag; }
  std::span<const PageId> pages_of(RegionId region) const { return regions_[region.value].pages; }
  std::vector<RegionId> live_regions() const;
  const Page& page(PageId id) const { return pages_[id]; }
  Source source_of(const Page& page) const;  // its part of its region's source; no bytes: none
  const Stats& stats() const { return stats_; }
  Stats& stats() { return stats_; }
  uint64_t capacity(Tier tier) const;
  uint64_t used(Tier tier) const;
  bool region_held(RegionId id) const { return regions_[id.value].held; }
  uint64_t device_held_bytes() const { return device_.used_bytes() + device_.free_bytes(); }
  uint64_t dirty_bytes() const;
  const WriteEconomy& writes() const { return writes_; }
  // By what the last plan() knew: a look changes nothing.
  const char* policy_in_force() const { return foresight_.known() ? min_.name() : clock_.name(); }
  const Predictor& predictor() const { return foresight_.predictor(); }
  uint64_t trace_uses() const { return foresight_.trace().end(); }
  uint64_t op_position(SlotId slot) const { return slots_[slot.value].traced_at; }  // Trace::kNever: it used nothing
  bool wants_times() const { return engaged_ && foresight_.wants_times(); }
  const ResidencyPlan& residency_plan() const { return foresight_.plan(); }
  uint64_t arriving_bytes() const { return arriving_bytes_; }
  uint64_t leaving_bytes() const;  // on their way out of DEVICE
  size_t wanted_pages(SlotId slot) const { return slots_[slot.value].wanted.size(); }
  std::string tier_table() const;  // "device 3.9 of 4.0 GiB, ..." for messages
  void check_invariants() const;

 private:
  static constexpr double kAllocationMicroseconds = 0.001;  // not 0, which says that the time is not known
  static constexpr uint64_t kFreshHalfLife = 512;  // uses
  static constexpr int kReuseTries = 32;         // larger cached regions looked at for one allocation
  static constexpr uint64_t kExpectedUses = 512;  // how far ahead allocations are counted
  static constexpr uint64_t kCachedAgeOld = 256;  // uses since a region was freed, after which nobody expects it back
  enum class RegionState : uint8_t { kGone, kLive, kCached, kDying };
  struct Region {  // what every operator looks at stands in the first cache line
    alignas(64) RegionState state = RegionState::kGone;
    bool other_streams = false;  // used on more streams than its own
    bool seen = false;
    bool held = false;           // never evictable again
    KeyId key;
    uint64_t offset = 0;
    uint64_t bytes_asked = 0;
    uint64_t uses = 0;           // granted since it was allocated
    uint64_t writes = 0;         // of them, those that write
    std::vector<PageId> pages;

    uint64_t bytes = 0;          // rounded up to the granule
    StreamId stream = 0;
    TagId tag = 0;
    Source source;               // of the pages that are sourced
    uint64_t cached_at = 0;      // trace position when it was freed: its age in uses
    uint64_t cached_serial = 0;  // place in cached_by_age_
    uint64_t ahead_serial = 0;   // last look ahead that met it
  };
  struct Wanted {
    PageId page;
    AccessMode mode;
  };
  // Bytes that dirty pages may still be sent down to, counted once per choice of victims. As send_down() (but interleaving 9).
  struct RoomBelow {
    uint64_t host = 0;
    uint64_t nvme = 0;
    bool take(uint64_t bytes) {
      uint64_t& room = host >= bytes ? host : nvme;
      if (room < bytes) return false;
      room -= bytes;
      return true;
    }
  };
  // One look ahead.
  struct Ahead {
    uint64_t reserve = 0;            // bytes of frames that stay free
    bool only_soon = false;          // room that leaves only when unfinished work ends does not count
    uint64_t unserved = 0;           // bytes for which room is being made
    std::optional<RoomBelow> below = std::nullopt;  // counted when it is needed first
  };
  struct Slot {
    bool in_use = false;
    bool permanent = false;
    Outcome outcome = Outcome::kGranted;
    Status failure;
    uint64_t age = 0;                // order of the first pin of the open operator, 0: holds nothing
    std::vector<PageId> pinned;
    // The waiting request.
    uint64_t order = 0;              // 0: not waiting
    uint64_t traced_at = Trace::kNever;  // position of the open operator's first use
    bool is_allocation = false;
    bool pin_result = true;
    std::vector<Wanted> wanted;
    std::vector<PageId> under_way;   // of them: being fetched before this request asked for them; sorted
    std::vector<std::pair<RegionId, bool>> regions;  // for the trace; true: written
    RegionId allocated;
    int storage_failures = 0;
    const char* name = "";
  };

  // pager.cpp: requests
  Outcome enqueue(SlotId slot);
  bool grantable(const Page& page, AccessMode mode) const;
  bool grantable(const Slot& slot) const;
  void grant(SlotId id);
  void note_uses(Slot& slot);
  void pin(Slot& slot, PageId page, AccessMode mode);
  void fail(SlotId id, Status status);
  void leave_queue(SlotId id);
  void mark_under_way(Slot& slot) const;  // pager_waits.cpp
  void collect(const Use& use, std::vector<Wanted>& wanted) const;
  Status too_large(const Slot& slot, uint64_t bytes) const;
  // pager_regions.cpp: regions
  RegionId new_region();
  bool ordered_before(const Region& region, StreamId stream) const;
  RegionId reuse_cached(uint64_t bytes, StreamId stream);
  bool ends_page(const Region& region, uint64_t bytes) const;
  void split_cached(RegionId id, uint64_t bytes);
  void give_page(PageId id, RegionId to);
  void add_cached(RegionId id);
  void remove_cached(RegionId id);
  RegionId make_region(uint64_t bytes);
  Outcome allocate_from_source(Slot& slot);
  void cut_into_pages(RegionId id);
  void retire_region(RegionId id);
  void finish_dying(RegionId id);
  uint64_t drop_oldest_cached(uint64_t age_min = 0);
  uint64_t drop_surplus_cached(uint64_t page_bytes = 0);
  uint64_t drop_cached(RegionId region);
  void look_for_allocations();
  bool finished(const Page& page) const;
  void uncache(RegionId id);
  void settle_freed(PageId id);
  void cleanup_allocation(Slot& slot);
  // pager_engagement.cpp
  void engage();
  void disengage_if_all_fits();
  void record_fences(const std::vector<StreamId>& streams);
  bool refused(const Page& page) const;
  // planner.cpp: plan() and its parts
  bool catch_up_and_plan();  // reads what the trace has new, renews the residency plan; whether MIN can choose
  void serve_requests();
  FramesWanted start_missing(Slot& slot, bool frames_allowed);
  bool start_arrival(PageId id, bool urgent);
  void make_room(FramesWanted wanted, uint64_t order);
  uint64_t free_exactly(FramesWanted& wanted, RoomBelow& below, uint64_t bytes);
  PageId leaving_victim(uint64_t bytes, uint64_t distance, RoomBelow& below);
  EvictionPolicy& begin_eviction(uint64_t order);
  PageId next_victim(EvictionPolicy& policy, RoomBelow& below);
  bool evictable(PageId id, uint64_t order) const;
  RoomBelow room_below(bool spare_writes = true) const;
  uint64_t leave_past_write_budget(uint64_t bytes, uint64_t order);
  bool mostly_read(RegionId region) const;
  void start_spill(PageId id);
  bool only_in_host(PageId id) const;
  bool spill_in_place_of(PageId leaving);
  bool host_copy_redundant(const Page& page) const;
  uint64_t redundant_host_bytes() const;
  uint64_t device_room() const;
  uint64_t device_room_soon() const;
  void leave(PageId id);
  void advance_leaving();
  bool advance_leaving(PageId id);
  bool fences_finished(PageId id);
  bool send_down(PageId id);
  bool make_host_room(uint64_t bytes);
  bool take_idle_copies_place(uint64_t bytes);
  void honour_capacity();
  void make_room_over_budget(uint64_t excess);
  void shrink_host();
  void prefetch_ahead();
  void fetch_early();
  bool fetch_early(RegionId region, uint64_t distance, Ahead& ahead);
  uint64_t fresh_bytes_lately();
  MinPolicy::Next next_use_in_host(RegionId region);
  MinPolicy::Next next_use(RegionId region);
  void clean_ahead();
  bool take_prefetched(Page& page);
  bool missing_ahead(PageId id);
  bool start_ahead(PageId id, const Ahead& ahead);
  bool make_room_ahead(PageId id, uint64_t distance, Ahead& ahead);
  void serve_hints();
  void start_unmap(PageId id);
  void fail_if_stuck();
  Status out_of_memory(const Slot& slot) const;
  Action& push_movement(ActionKind kind, PageId id);
  void push_release(const std::vector<FrameId>& frames);
  void return_frame(FrameId frame);
  void give_back(Tier tier, const SpanList& spans);
  void drop_lower(Page& page, Tier tier);
  void update_gauges();
  // transfers.cpp: completions
  void arrival_done(PageId id, const TransferResult& result);
  void copy_down_done(PageId id, const TransferResult& result);
  void unmap_done(PageId id);
  void fail_requests_for(PageId id, const Status& status);
  void count_copy(const Page& page);

  PagerConfig config_;
  DevicePool device_;
  SpanPool host_;
  SpanPool nvme_;
  RegionMap map_;
  PageTable pages_;
  std::vector<Region> regions_;
  std::vector<RegionId> unused_regions_;
  std::map<uint64_t, std::vector<RegionId>> cached_;  // by rounded size, newest last
  std::map<uint64_t, RegionId> cached_by_age_;  // by cached_serial, oldest first
  uint64_t next_cached_serial_ = 1;
  std::vector<Slot> slots_;
  std::vector<SlotId> waiting_;      // by order
  std::vector<PageId> leaving_;      // pages on their way out of DEVICE, unmapping ones included
  FenceLedger fences_;
  Foresight foresight_;
  ClockPolicy clock_;
  MinPolicy min_;
  MinPolicy host_min_;                   // among pages whose only copy is in HOST
  // Of one pass over the pages that leave:
  uint64_t spill_candidates_bytes_ = 0;  // size of the pages among which host_min_ chooses, 0: not yet looked for
  uint64_t host_room_refused_ = ~uint64_t{0};  // smallest size for which make_host_room found nothing: it looks at every page
  uint64_t dirty_leaving_bytes_ = 0;     // of pages at rest when it began
  Stats stats_;
  WriteEconomy writes_;
  uint64_t spilling_bytes_ = 0;  // on their way from HOST to NVME, whose RAM comes free
  std::vector<Action> actions_;
  uint64_t next_order_ = 1;
  uint64_t moving_ = 0;              // movements under way
  uint64_t arriving_bytes_ = 0;
  uint64_t ahead_serial_ = 0;
  uint64_t idle_copies_quiet_until_ = 0;  // trace position before which no copy in HOST has become idle
  uint64_t ahead_quiet_until_ = 0;   // trace position before which nothing is missing for long
  uint64_t native_reserved_bytes_ = 0;
  bool short_of_frames_ = false;     // a waiting request needs more frames than there are
  uint64_t prefetched_bytes_ = 0;    // of pages fetched ahead and not used yet
  uint64_t fresh_bytes_ = 0;         // allocations that no cached region served, decaying
  uint64_t fresh_since_ = 0;         // trace position of the last decay
  uint64_t cached_bytes_ = 0;        // of cached regions
  uint64_t expected_bytes_ = 0;
  std::unordered_map<uint64_t, uint32_t> expected_;  // by rounded size: allocations that the trace announces
  uint64_t expected_at_ = ~uint64_t{0};  // trace position at which they were counted
  uint64_t device_capacity_wanted_ = 0;  // what the user set; the pool's may be lower after the device refused
  uint64_t host_space_wanted_ = 0;
  uint32_t host_hand_ = 0;
  bool host_growing_ = true;         // more host space will become ready
  bool nvme_blocked_ = false;        // a write-back failed; wait for a new request or a tick before the next
  bool spill_blocked_ = false;       // a spill failed; wait for a tick
  Status last_storage_error_;
  bool slots_changed_ = false;
  bool wants_planning_ = false;
  bool engaged_ = false;             // something had to leave DEVICE
  uint64_t left_at_ = 0;             // trace position when a page was last told to leave
  uint64_t left_at_tick_ = 0;        // the same as of the last tick
  std::vector<std::pair<PageId, RegionId>> hinted_;  // pages that the user asked to have
  std::deque<std::pair<PageId, RegionId>> cleanable_;  // dirty pages that are planned to leave, in order of their last use
  uint64_t descending_bytes_ = 0;    // of write-backs under way
  std::function<void()> request_waits_;
};

}  // namespace tierpage
