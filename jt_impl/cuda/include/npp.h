// Jittor 1.3.11 includes NPP for eight integer limits and for nothing else. Where that library is not installed,
// as in the toolkit's Python packages, the limits are enough.
#pragma once

#if __has_include(<vendor/npp.h>)
#include <vendor/npp.h>
#else
#define NPP_MIN_32U (0)
#define NPP_MAX_32U (4294967295U)
#define NPP_MIN_32S (-2147483647 - 1)
#define NPP_MAX_32S (2147483647)
#define NPP_MIN_64U (0)
#define NPP_MAX_64U (18446744073709551615ULL)
#define NPP_MIN_64S (-9223372036854775807LL - 1)
#define NPP_MAX_64S (9223372036854775807LL)
#endif
