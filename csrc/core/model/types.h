// Words shared by every layer: tiers, strong ids, fences, byte units. Nothing here has behaviour.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>

namespace tierpage {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;
inline constexpr int64_t kSecondNs = 1'000'000'000;

inline double mebibytes(uint64_t bytes) { return static_cast<double>(bytes) / static_cast<double>(kMiB); }

// An index that cannot be mistaken for a count or for an index of another kind.
template <class Tag, class Rep>
struct StrongId {
  using rep = Rep;
  static constexpr Rep kNoneValue = std::numeric_limits<Rep>::max();
  Rep value = kNoneValue;

  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep v) : value(v) {}
  static constexpr StrongId none() { return StrongId{}; }
  constexpr bool valid() const { return value != kNoneValue; }
  friend constexpr auto operator<=>(StrongId, StrongId) = default;
};

using PageId = StrongId<struct PageTag, uint32_t>;
using RegionId = StrongId<struct RegionTag, uint32_t>;
using FrameId = StrongId<struct FrameTag, uint32_t>;        // a physical handle of the DEVICE tier
using TransferId = StrongId<struct TransferTag, uint64_t>;  // one movement of one page
using StreamId = uint32_t;                                  // dense index of an execution stream
using KeyId = StrongId<struct KeyTag, uint32_t>;  // what a region is to the trace: the same in every recurrence

// Tiers in order from fast to slow.
enum class Tier : uint8_t { kDevice = 0, kHost = 1, kNvme = 2 };
inline constexpr int kTierCount = 3;
constexpr int index_of(Tier tier) { return static_cast<int>(tier); }
constexpr const char* name_of(Tier tier) {
  return tier == Tier::kDevice ? "device" : tier == Tier::kHost ? "host" : "nvme";
}

// "All work queued on `stream` up to `sequence` has finished." Sequences of one stream only grow.
struct Fence {
  // From here on: work was queued, and nothing marks its end yet. The fence ledger numbers what is owed.
  static constexpr uint64_t kOwed = uint64_t{1} << 63;
  StreamId stream = 0;
  uint64_t sequence = 0;  // 0: nothing was queued, finished by definition
  constexpr bool owed() const { return sequence >= kOwed; }
  friend constexpr bool operator==(const Fence&, const Fence&) = default;
};

constexpr uint64_t round_up(uint64_t value, uint64_t granule) { return (value + granule - 1) / granule * granule; }

}  // namespace tierpage

template <class Tag, class Rep>
struct std::hash<tierpage::StrongId<Tag, Rep>> {
  size_t operator()(tierpage::StrongId<Tag, Rep> id) const noexcept { return std::hash<Rep>{}(id.value); }
};
