// What each unit of a store must look like when it is read back: one CRC32C a unit, in RAM.
//
// A unit is a fixed, aligned range of the store (the last one may be shorter). Its checksum is known from the end of a
// write that covered it whole until the next write of any of its bytes begins; at all other times it is unknown, and an
// unknown unit is never called wrong: it was never written, is being written, was torn by a failed write, or was
// written in parts. So a request of any alignment stays right; only whole units are checked.
//
// Threads. The store's contract keeps requests whose ranges overlap apart; requests that only share a unit may run at
// the same time, since neither covers it and both make it unknown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/model/status.h"

namespace tierpage {

class UnitChecksums {
 public:
  struct Mismatch {
    uint64_t offset = 0;  // of the unit in the store
    uint64_t bytes = 0;
    uint32_t expected = 0;
    uint32_t found = 0;
  };

  UnitChecksums() = default;
  ~UnitChecksums();
  UnitChecksums(UnitChecksums&& other) noexcept;
  UnitChecksums& operator=(UnitChecksums&&) = delete;

  // `unit_bytes` is a power of two. The table costs RAM only where units are written: 4 bytes each.
  Status open(uint64_t capacity_bytes, uint64_t unit_bytes);
  bool enabled() const { return table_ != nullptr; }

  // A write is: compute, forget, the write itself, and if it succeeded, remember.
  // compute puts one checksum for each unit that lies inside of the range into `room`, in order, and returns those;
  // units for which there is no room stay unknown.
  std::span<const uint32_t> compute(uint64_t offset, uint64_t bytes, const std::byte* data,
                                    std::span<uint32_t> room) const;
  void forget(uint64_t offset, uint64_t bytes);
  void remember(uint64_t offset, std::span<const uint32_t> made);

  // First unit inside of the range whose checksum is known and is not that of `data`.
  std::optional<Mismatch> first_wrong(uint64_t offset, uint64_t bytes, const std::byte* data) const;

 private:
  struct Units {
    uint64_t begin = 0;
    uint64_t end = 0;
  };
  Units inside(uint64_t offset, uint64_t bytes) const;
  uint64_t unit_begin(uint64_t unit) const { return unit * unit_bytes_; }
  uint64_t unit_size(uint64_t unit) const;

  uint32_t* table_ = nullptr;  // by unit; kUnknown or a checksum
  uint64_t table_bytes_ = 0;
  uint64_t capacity_bytes_ = 0;
  uint64_t unit_bytes_ = 0;
};

}  // namespace tierpage
