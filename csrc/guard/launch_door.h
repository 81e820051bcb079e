// The one door that every kernel, copy and graph of a process passes: the CUDA driver's calls, seen through CUPTI
// before the driver acts, in the thread that makes them.
//
// Life: closed -> open (subscribed: graphs are read when they are made, which is rare) -> watching (each launch is
// looked at) -> open -> closed. CUPTI before 13.3 has one subscriber in a process, so a profiler needs the door closed.
//
// Interleavings:
//   1. A call that began before watch(true) is not seen; one that began before watch(false) or close() may still be in
//      before() or after(). close() waits for these, so a handler may then go. It waits without the lock of watch():
//      who is inside may wait for a thread that comes to watch(true).
//   2. A call that was seen at its begin is not seen at its end if watching ended in between: CUPTI asks at each site
//      whether the call is enabled. What before() took then stays for good.
//   3. A thread inside before() may wait for other threads that call the driver: CUPTI holds no lock while it calls us.
//   4. A capture may have begun before open(), or before watch(true). What its graph uses is known all the same: the
//      graph is read when it is made executable, which only an open door sees, and no graph can be launched before. The
//      handler does not hear of a capture that began before open(): so its end, too, is not told, and ends no other's.
//   5. A graph that could not be read is in the book before the attempt, as one that is not known: its launches are
//      refused.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>

#include "guard/cupti_abi.h"
#include "guard/launch_words.h"
#include "locks/mutex.h"

namespace tierpage {

struct DriverCall;

struct Launch {
  const char* name = nullptr;  // of the kernel (mangled) or of the driver's function
  uint64_t stream = 0;         // a CUstream
  std::span<const Pointer> pointers;
};

class LaunchHandler {
 public:
  virtual ~LaunchHandler() = default;
  virtual AddressRange range() const = 0;
  // False: this thread's launches on that stream need no look now, and nothing of them is read.
  virtual bool looks_at(uint64_t stream) const = 0;
  enum class Answer : uint8_t {
    kGo,
    kGoAndTell,  // after() is wanted, in the same thread, when the driver has queued the call
    kRefuse,     // the memory is not there: the call is to fail before it reaches the device
  };
  // `pointers` is not empty. What it throws ends at the door, and refuses the call: it has given back then what it
  // took, since after() does not come.
  virtual Answer before(const Launch& launch) = 0;
  virtual void after(uint64_t stream) = 0;
  virtual void capture(int change) = 0;  // a graph begins (1) or ends (-1) to be recorded
};

class LaunchDoor {
 public:
  static LaunchDoor& instance();  // lives as long as the process

  // Empty, or why it stays closed. `handler` must outlive the process.
  std::string open(LaunchHandler* handler);
  // Returns what the graphs use that it has read: from now on nobody looks at their launches. Captures that have not
  // ended are over for the handler, which would not hear of their end.
  std::vector<Pointer> close();
  void watch(bool on);
  bool is_open() const { return open_.load(std::memory_order_acquire); }
  bool watching() const { return watching_.load(std::memory_order_acquire); }

  LaunchDoor(const KernelFacts& facts, const cupti::Library& library);

 private:
  static void on_call(void* user, cupti::Domain domain, uint32_t number, const cupti::CallbackData* data);
  void enter(const DriverCall& call, const cupti::CallbackData& data);
  void exit(const DriverCall& call, const cupti::CallbackData& data);
  // False: nobody knows what the call uses.
  bool read(const DriverCall& call, const void* parameters, const AddressRange& range, std::vector<Pointer>& pointers);
  void read_node(const void* parameters, const AddressRange& range, std::vector<Pointer>& pointers);
  static void refuse(const DriverCall& call, const cupti::CallbackData& data);
  static void spoil(const DriverCall& call, const void* parameters);
  void enable(bool launches, bool on);
  void capture_begins(uint64_t stream);
  void capture_over(uint64_t stream);
  bool forget_capture(uint64_t stream);
  void made_executable(CUgraphExec graph_exec, CUgraph graph);
  void add_to_graph(CUgraphExec graph_exec, const void* kernel);

  const cupti::Library library_;
  const KernelFacts facts_;
  LaunchWords words_;
  GraphBook graphs_;
  LaunchHandler* handler_ = nullptr;
  cupti::Subscriber subscriber_ = nullptr;
  Mutex life_mutex_{LockRank::kDoorLife};  // one open or close at a time; taken before mutex_
  Mutex mutex_{LockRank::kLaunchDoor};     // of the subscription, and of which calls it tells of
  std::atomic<bool> open_{false};
  std::atomic<bool> watching_{false};
  std::atomic<int> inside_{0};  // threads in a callback
  Mutex capture_mutex_{LockRank::kDoorCaptures};
  // Streams of captures that the handler was told of and that have not ended.
  std::vector<uint64_t> captures_ TP_GUARDED_BY(capture_mutex_);
};

}  // namespace tierpage
