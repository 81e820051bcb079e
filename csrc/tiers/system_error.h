// What an errno means to the tiers, and how messages say it.
#pragma once

#include <string>

#include "core/model/status.h"

namespace tierpage {

// kStorageFull for ENOSPC, EDQUOT and EFBIG, else kStorageError.
StatusCode storage_code_of(int system_error);
// System calls in a row that move nothing and report nothing, after which a transfer has failed.
inline constexpr int kStuckCallsMax = 8;
// "No space left on device (errno 28)"
std::string describe_system_error(int system_error);

}  // namespace tierpage
