// One row per page: where its content lies, how it moves, who holds it. Everybody reads a row; it is written by its own
// functions only (tests/tidy.py looks for others), and those that move it check their predecessor.
//
// The states that a row amounts to (PageState), and the functions that lead from one to another:
//
//                      start_arrival(kMap)            finish_arrival(false)
//      empty --------------------------------> arriving --------------> cached   (a freed region's frame)
//        ^  \                                   ^  |                     |  ^
//        |   adopt_source                       |  | finish_arrival(true) |  | forget_content
//        |        \                             |  v               write  v  |
//        |         v      start_arrival(kFetch) |  resident clean <------> resident dirty
//        |       below -------------------------+  |      write -->  <-- finish_copy_down
//        |         ^                               |                     |
//        |         |             finish_unmap      | start_unmap         | start_write_back, finish_copy_down,
//        |         +------------------------- departing <----------------+ start_unmap
//        +----------------------------------------/  finish_unmap without content
//
//   A page that was told to leave counts as departing until stay(). In "below" start_spill, start_stage and start_read
//   begin copies between HOST and NVME, or a reading; finish_copy_down and finish_read end them. abandon_arrival and
//   abandon_copy_down lead back to where the movement began.
//
// Words. A page is *clean* when a lower tier holds a valid copy as well, *dirty* when exactly one tier does; that is
// derived from `valid`, never stored. A write clears the lower copies.
//
// A *sourced* page has its NVMe copy in a file of the user's that is only read (a checkpoint), at the place that its
// region knows, instead of in spans. It is a lower copy like any other, but for two things: nothing is ever written to
// it, and it takes no space. It stays as long as the content equals it, and is gone for good with the first write.
//
// A lower copy may be *coded*: it then has fewer bytes than the page (docs/page-format.md), and spans for those only.
// What a copy takes is known when it has come down; until then it has spans for the whole page.
//
// Invariants of a row (check_invariants):
//   (a) valid in DEVICE  =>  mapped;  mapped  =>  it owns a frame
//   (b) valid in HOST  =>  it owns spans there;  valid in NVME  =>  it owns spans there or is sourced, not both
//   (c) no movement  =>  a frame is mapped, and spans are valid
//   (d) moving up (map, fetch): frame owned, not mapped, not valid in DEVICE; the source, if any, is valid
//   (e) moving down (write-back, spill, stage): the source is valid, the target has spans and is not valid
//   (f) unmapping: mapped, not valid in DEVICE, no pins
//   (g) pins > 0  =>  mapped, not leaving, movement is none, write-back, spill, stage or read
//   (h) sourced  =>  valid in NVME
//   (i) read: it owns spans in HOST
//   (j) asked to leave  =>  it leaves, or unmaps
//   (k) the bytes of a lower copy are at most those of its spans and of the page; no spans: none
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/model/frame_pool.h"
#include "core/model/status.h"
#include "core/model/types.h"

namespace tierpage {

enum class Movement : uint8_t {
  kNone,
  kMap,        // a frame without content is mapped
  kFetch,      // HOST or NVME -> DEVICE, mapping included
  kWriteBack,  // DEVICE -> HOST or NVME; the page stays resident
  kUnmap,      // the frame is taken out of the range
  kSpill,      // HOST -> NVME
  kStage,      // NVME -> HOST
  kRead,       // the copy in HOST is read by somebody outside; nothing moves, and nothing may
};

// How far the executor is with a page that maps or is fetched, as far as the pager was told.
enum class ArrivalStage : uint8_t { kQueued, kMapping, kCopying };

// What a row amounts to, for tests, traces and people. Derived.
enum class PageState : uint8_t { kEmpty, kArriving, kResidentClean, kResidentDirty, kCached, kDeparting, kBelow };
const char* name_of(PageState state);

// What every operator looks at, when all fits, stands in the first cache line.
struct Page {
  alignas(64) uint8_t valid = 0;  // bit index_of(tier): that tier's copy is the content
  bool mapped : 1 = false;
  bool incompressible : 1 = false;  // its content did not shrink when it was last coded
  bool sourced : 1 = false;         // the NVME copy is its region's source
  bool guarded : 1 = false;  // mapped so that it can only be read; every clean one is, where the device can do that
  Movement movement = Movement::kNone;
  bool leaving = false;      // chosen as a victim; not yet unmapping
  bool evict_asked = false;  // leaving because the user or a smaller budget wants it
  bool wrote_back = false;   // on this way out its content was copied down
  bool referenced = false;   // Clock's bit
  bool prefetched = false;   // brought up ahead of use and not used yet
  bool cleanable = false;    // stands in the pager's list of pages to be written ahead
  bool listed = false;       // stands in the pager's list of leaving pages
  bool hinted = false;       // stands in the pager's list of hints
  bool unmarked = false;     // work that no fence marks may be queued on streams that its region knows
  bool kept_out = false;     // the user wants it out of DEVICE until an operator uses it: no guess brings it back
  uint32_t pins = 0;
  RegionId region;
  FrameId frame;              // DEVICE
  uint64_t offset = 0;        // in the reserved range
  uint64_t bytes = 0;         // granule * 2^n
  std::vector<Fence> fences;  // last uses, at most one per stream, and one that is owed

  SpanList host;                                 // HOST
  SpanList nvme;                                 // NVME
  uint64_t host_bytes = 0;                       // of the copy in HOST: fewer than `bytes` where it is coded
  uint64_t nvme_bytes = 0;                       // the same in NVME; 0 for a sourced one
  uint64_t claim = 0;                            // order of the oldest waiting request that needs the page, 0: none
  uint32_t movement_serial = 0;                  // makes TransferId unique
  Tier lower = Tier::kHost;                      // source of a fetch, target of a write-back
  ArrivalStage arrival = ArrivalStage::kQueued;  // of an arrival under way; decides nothing, names the cause of waits

  bool is_valid(Tier tier) const { return valid >> index_of(tier) & 1; }
  bool only_in(Tier tier) const { return valid == 1 << index_of(tier); }
  bool has_content() const { return valid != 0; }
  bool has_lower_memory() const { return !host.empty() || !nvme.empty() || sourced; }
  bool dirty() const { return only_in(Tier::kDevice); }
  uint64_t stored_bytes(Tier tier) const {  // of the copy there, or of the one that is read from its source
    const uint64_t stored = tier == Tier::kHost ? host_bytes : nvme_bytes;
    return stored != 0 ? stored : bytes;
  }
  uint64_t span_bytes(Tier tier) const { return bytes_of(tier == Tier::kHost ? host : nvme); }
  PageState state() const;
  TransferId transfer(PageId self) const { return TransferId(uint64_t{self.value} << 32 | movement_serial); }

  // Transitions.
  void start_arrival(Movement kind, FrameId taken, Tier source);
  void finish_arrival(bool with_content);
  void abandon_arrival(bool is_mapped);  // the copy failed; is_mapped: the frame is in the range and must leave it
  void start_write_back(Tier target, SpanList spans);
  void start_spill(SpanList spans);
  void start_stage(SpanList spans);
  void finish_copy_down();       // write-back, spill, stage: the target turns valid
  SpanList abandon_copy_down();  // the target's spans, to be given back
  // The copy that has come down last takes `stored` bytes only; what is cut off its first `kept` bytes of spans.
  SpanList shrink_copy(uint64_t stored, uint64_t kept);
  void set_incompressible(bool is) { incompressible = is; }
  void start_read();
  void finish_read();
  void start_unmap();
  FrameId finish_unmap();
  void adopt_source();           // an empty page: its content is its region's source
  void write();                  // an operator was granted write access: only DEVICE is valid from here on
  void forget_content();         // the region was freed
  SpanList drop(Tier tier);      // a redundant or meaningless lower copy; its spans
  void add_fence(Fence fence) {  // inline: on every operator's way out
    for (Fence& known : fences) {
      if (known.stream != fence.stream || known.owed() != fence.owed()) continue;
      if (fence.sequence > known.sequence) known.sequence = fence.sequence;
      return;
    }
    if (fence.sequence != 0) fences.push_back(fence);
  }

  void settle_owed(Fence owed, Fence fence);  // what was owed on that stream until then ends with `fence`

  // Who uses it, and whether it is to leave.
  bool pin() { return pins++ == 0; }    // true: it was not pinned
  bool unpin() { return --pins == 0; }  // true: it is not pinned any more
  void use() {                          // by an operator; inline: on every operator's way in
    stay();
    wrote_back = false;
    referenced = true;
    kept_out = false;
  }
  void tell_to_leave() {
    leaving = true;
    wrote_back = false;
  }
  void ask_to_leave() {  // because the user wants it: no guess takes it back
    tell_to_leave();
    evict_asked = true;
  }
  void stay() { leaving = evict_asked = false; }
  void claim_for(uint64_t order) { claim = claim == 0 || claim > order ? order : claim; }
  void give_up_claim(uint64_t order) { claim = claim == order ? 0 : claim; }
  bool take_second_chance() { return std::exchange(referenced, false); }
  void set_unmarked(bool may_be) { unmarked = may_be; }
  void keep_out() { kept_out = true; }
  void let_in() { kept_out = false; }
  void reached(ArrivalStage stage) { arrival = stage; }
  void give_to(RegionId owner) { region = owner; }

  // Where it stands in the pager's lists. Each returns whether that was so before.
  bool set_listed(bool stands) { return std::exchange(listed, stands); }
  bool set_hinted(bool stands) { return std::exchange(hinted, stands); }
  bool set_cleanable(bool stands) { return std::exchange(cleanable, stands); }
  bool set_prefetched(bool ahead) { return std::exchange(prefetched, ahead); }

  void check_invariants() const;

 private:
  SpanList& spans(Tier tier) { return tier == Tier::kHost ? host : nvme; }
  uint64_t& stored(Tier tier) { return tier == Tier::kHost ? host_bytes : nvme_bytes; }
  void take_spans(Tier tier, SpanList taken, uint64_t bytes_stored);
  void set_valid(Tier tier) { valid = static_cast<uint8_t>(valid | 1 << index_of(tier)); }
  void clear_valid(Tier tier) { valid = static_cast<uint8_t>(valid & ~(1 << index_of(tier))); }
};

// Rows by id; ids of gone pages are reused.
class PageTable {
 public:
  PageId add(RegionId region, uint64_t offset, uint64_t bytes);
  void remove(PageId page);
  Page& operator[](PageId page) { return rows_[page.value]; }
  const Page& operator[](PageId page) const { return rows_[page.value]; }
  uint32_t size() const { return static_cast<uint32_t>(rows_.size()); }  // rows, gone ones included
  // For loops over all rows: for (const PageId id : pages.ids()). Rows added meanwhile are visited, removed ones are
  // not.
  class Ids {
   public:
    class Iterator {
     public:
      Iterator(const PageTable& table, uint32_t index) : table_(&table), index_(index) { skip(); }
      PageId operator*() const { return PageId(index_); }
      Iterator& operator++() {
        ++index_;
        skip();
        return *this;
      }
      bool operator!=(const Iterator&) const { return index_ < table_->size(); }

     private:
      void skip() {
        while (index_ < table_->size() && !table_->exists(PageId(index_))) ++index_;
      }
      const PageTable* table_;
      uint32_t index_;
    };
    explicit Ids(const PageTable& table) : table_(table) {}
    Iterator begin() const { return {table_, 0}; }
    Iterator end() const { return {table_, table_.size()}; }

   private:
    const PageTable& table_;
  };
  Ids ids() const { return Ids(*this); }
  bool exists(PageId page) const { return page.value < rows_.size() && rows_[page.value].region.valid(); }
  void check_invariants() const;

 private:
  std::vector<Page> rows_;
  std::vector<PageId> unused_;
};

}  // namespace tierpage
