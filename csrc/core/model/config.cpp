// Limits of PagerConfig.
#include "core/model/config.h"

#include <bit>

namespace tierpage {

std::vector<std::string> validate(const PagerConfig& config) {
  std::vector<std::string> problems;
  auto require = [&](bool holds, std::string text) {
    if (!holds) problems.push_back(std::move(text));
  };
  require(std::has_single_bit(config.granule_bytes), "granule_bytes must be a power of two");
  require(std::has_single_bit(config.frame_bytes_max) && config.frame_bytes_max >= config.granule_bytes,
          "frame_bytes_max must be a power of two and at least granule_bytes");
  require(std::has_single_bit(config.span_bytes_min) && config.span_bytes_min <= config.granule_bytes,
          "span_bytes_min must be a power of two and at most granule_bytes");
  require(config.range_bytes >= config.granule_bytes, "range_bytes must hold at least one page");
  require(config.device_bytes_max >= config.granule_bytes,
          "device_budget is " + std::to_string(config.device_bytes_max) + " bytes, less than one page of " +
              std::to_string(config.granule_bytes) + " bytes");
  require(config.trace_uses_max >= 1024, "trace_uses_max must be at least 1024");
  return problems;
}

}  // namespace tierpage
