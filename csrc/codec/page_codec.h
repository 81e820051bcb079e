// A lossless code for pages of floating point numbers, on the CPU; page_encode.cu and page_decode.cu are it for a GPU.
//
// Few exponents are frequent in weights, gradients, activations and optimizer states; the other bits are noise. Each
// element gets a short code for its exponent, and keeps the rest as it is; a rare exponent is an escape and costs a
// byte more. The format is docs/page-format.md. Pure functions: no thread, no state; any alignment of either side.
#pragma once

#include <cstddef>
#include <span>

#include "codec/code_choice.h"
#include "codec/page_format.h"
#include "core/model/status.h"

namespace tierpage {

// Bytes written to `out`, or 0 if the page is not worth it or its code does not fit. An `out` as long as the page
// always suffices. What `out` holds after 0 is not defined. The two sides do not overlap.
size_t encode_page(std::span<const std::byte> page, const CodeChoice& choice, std::span<std::byte> out);
// The same with a dictionary of its own choice; kPlain is never worth it.
size_t encode_page(std::span<const std::byte> page, ElementType type, std::span<std::byte> out);
// The same where nobody knows what the page holds.
size_t encode_page(std::span<const std::byte> page, std::span<std::byte> out);

// `coded` may be longer than the code. `page` has the page's size exactly, else kCorruptPage; so it is for damage that
// shows. Damage that does not show gives wrong content (checksums are the store's), never an access out of bounds.
// What `page` holds after an error is not defined.
Status decode_page(std::span<const std::byte> coded, std::span<std::byte> page);

}  // namespace tierpage
