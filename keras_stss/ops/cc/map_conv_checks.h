// What the shape functions and the kernels of the convolutions over tiny maps have in common.
#ifndef KERAS_STSS_MAP_CONV_CHECKS_H_
#define KERAS_STSS_MAP_CONV_CHECKS_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "map_conv.h"

namespace keras_stss {

inline int64_t MapBlocks(int64_t maps) { return (maps + kMapLanes - 1) / kMapLanes; }

// An error of the caller's: what is wanted, and what was received.
template <typename... Parts>
absl::Status InvalidMaps(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("map_conv: ", parts...));
}

// Attributes that hold (vertical, horizontal) for each convolution.
inline absl::Status CheckMapPairs(const std::vector<int64_t>& pairs, const char* name, int64_t layers, int64_t least) {
  bool good = static_cast<int64_t>(pairs.size()) == 2 * layers;
  for (int64_t value : pairs) good = good && value >= least;
  if (good) return absl::OkStatus();
  return InvalidMaps(name, " must be two numbers a convolution, each at least ", least, ", for ", layers,
                     " of them. Received: ", pairs.size(), " numbers (", absl::StrJoin(pairs, ", "), ")");
}

}  // namespace keras_stss

#endif  // KERAS_STSS_MAP_CONV_CHECKS_H_
