// Implements the table of checksums.
#include "tiers/unit_checksums.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "core/model/types.h"
#include "tiers/crc32c.h"

namespace tierpage {
namespace {

// What a fresh mapping holds, so that units that nobody wrote cost nothing.
constexpr uint32_t kUnknown = 0;

// A checksum of 0 is kept as 1: one mismatch in 2^32 more goes unseen, and the table needs no second bit of state.
uint32_t checksum_of(const std::byte* data, uint64_t bytes) {
  const uint32_t checksum = crc32c(data, bytes);
  return checksum == kUnknown ? 1 : checksum;
}

// Relaxed: a read is submitted after the completion of the write that it wants to see, which orders the two.
void put(uint32_t* entry, uint32_t value) { std::atomic_ref(*entry).store(value, std::memory_order_relaxed); }
uint32_t get(uint32_t* entry) { return std::atomic_ref(*entry).load(std::memory_order_relaxed); }

}  // namespace

UnitChecksums::~UnitChecksums() {
  if (table_ != nullptr) munmap(table_, table_bytes_);
}

UnitChecksums::UnitChecksums(UnitChecksums&& other) noexcept
    : table_(std::exchange(other.table_, nullptr)), table_bytes_(other.table_bytes_),
      capacity_bytes_(other.capacity_bytes_), unit_bytes_(other.unit_bytes_) {}

Status UnitChecksums::open(uint64_t capacity_bytes, uint64_t unit_bytes) {
  const uint64_t units = round_up(capacity_bytes, unit_bytes) / unit_bytes;
  const uint64_t bytes = units * sizeof(uint32_t);
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    const int error = errno;
    return Status::error(StatusCode::kUnavailable,
                         "no room for the checksums of the spill file (" + std::to_string(bytes) +
                             " bytes of address space): " + std::strerror(error) +
                             "; lower nvme_budget, or give verify=\"off\"",
                         error);
  }
  table_ = static_cast<uint32_t*>(mapped);
  table_bytes_ = bytes;
  capacity_bytes_ = capacity_bytes;
  unit_bytes_ = unit_bytes;
  return Status::success();
}

UnitChecksums::Units UnitChecksums::inside(uint64_t offset, uint64_t bytes) const {
  const uint64_t end = offset + bytes;
  const uint64_t whole_end = end == capacity_bytes_ ? round_up(end, unit_bytes_) : end;  // the last unit may be shorter
  Units units{round_up(offset, unit_bytes_) / unit_bytes_, whole_end / unit_bytes_};
  units.end = std::max(units.begin, units.end);
  return units;
}

uint64_t UnitChecksums::unit_size(uint64_t unit) const {
  return std::min(unit_bytes_, capacity_bytes_ - unit_begin(unit));
}

std::span<const uint32_t> UnitChecksums::compute(uint64_t offset, uint64_t bytes, const std::byte* data,
                                                 std::span<uint32_t> room) const {
  const Units units = inside(offset, bytes);
  const size_t count = std::min<uint64_t>(units.end - units.begin, room.size());
  for (size_t i = 0; i < count; ++i) {
    const uint64_t unit = units.begin + i;
    room[i] = checksum_of(data + (unit_begin(unit) - offset), unit_size(unit));
  }
  return room.first(count);
}

void UnitChecksums::forget(uint64_t offset, uint64_t bytes) {
  const uint64_t end = round_up(offset + bytes, unit_bytes_) / unit_bytes_;
  for (uint64_t unit = offset / unit_bytes_; unit < end; ++unit) put(table_ + unit, kUnknown);
}

void UnitChecksums::remember(uint64_t offset, std::span<const uint32_t> made) {
  uint32_t* entry = table_ + round_up(offset, unit_bytes_) / unit_bytes_;
  for (const uint32_t checksum : made) put(entry++, checksum);
}

std::optional<UnitChecksums::Mismatch> UnitChecksums::first_wrong(uint64_t offset, uint64_t bytes,
                                                                  const std::byte* data) const {
  const Units units = inside(offset, bytes);
  for (uint64_t unit = units.begin; unit < units.end; ++unit) {
    const uint32_t expected = get(table_ + unit);
    if (expected == kUnknown) continue;
    const uint32_t found = checksum_of(data + (unit_begin(unit) - offset), unit_size(unit));
    if (found != expected) return Mismatch{unit_begin(unit), unit_size(unit), expected, found};
  }
  return std::nullopt;
}

}  // namespace tierpage
