// Whether a sanitizer runs beside, which makes plain loops ten times as slow. Tests of what memory
// has no part in, such as bits that agree, then try fewer cases; all are tried without it.
#pragma once

namespace drover::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace drover::testing
