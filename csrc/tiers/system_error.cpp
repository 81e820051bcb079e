// Implements the words for errors of the system.
#include "tiers/system_error.h"

#include <cerrno>
#include <cstring>

namespace tierpage {

StatusCode storage_code_of(int system_error) {
  const bool full = system_error == ENOSPC || system_error == EDQUOT || system_error == EFBIG;
  return full ? StatusCode::kStorageFull : StatusCode::kStorageError;
}

std::string describe_system_error(int system_error) {
  char text[128] = "";
  return std::string(strerror_r(system_error, text, sizeof text)) + " (errno " + std::to_string(system_error) + ")";
}

}  // namespace tierpage
