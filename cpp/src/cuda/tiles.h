// The sizes by which work is cut up: what planning and the kernels must agree on.
#pragma once

#include "kernels/kernels.h"

namespace nola::cuda {

// As narrow as a device likes its indices.
inline constexpr unsigned kStripe = kernels::kStripe;
inline constexpr unsigned kStripeLanes = kernels::kStripeLanes;
inline constexpr unsigned kStripeWords = kernels::kStripeWords;
inline constexpr unsigned kRademacherPerDraw = kernels::kRademacherPerDraw;
inline constexpr unsigned kUniformPerDraw = kernels::kUniformPerDraw;
inline constexpr unsigned kSignGroup = kernels::kSignGroup;
inline constexpr unsigned kSignTable = kernels::kSignTable;

inline constexpr unsigned kWarp = 32;

// expand: a thread has one Philox counter of a stripe, four elements; a block has a tile.
inline constexpr unsigned kExpandThreads = 256;
inline constexpr unsigned kExpandSlots = kExpandThreads / kStripeLanes;

// project: a lane has one counter of a stripe, and a warp, which is a block of its own, goes over
// the stripes of a unit in steps.
inline constexpr unsigned kStepSlots = kWarp / kStripeLanes;
inline constexpr unsigned kUnitSteps = 4;
inline constexpr unsigned kUnitSlots = kUnitSteps * kStepSlots;
inline constexpr unsigned kGroupBases = kWarp;  // a lane ends up with the sum of one basis
inline constexpr unsigned kMaxGroupsPerItem = 4;
inline constexpr unsigned kFinishThreads = 256;

// merge: a thread has four rows and twice four columns of a tile.
inline constexpr unsigned kMergeThreads = 256;
inline constexpr unsigned kMergeRows = 4;
inline constexpr unsigned kMergeTileRows = kMergeThreads / 16 * kMergeRows;
inline constexpr unsigned kMergeTileCols = 16 * 8;
inline constexpr unsigned kMergeRanks = 16;  // of the factors, in shared memory at a time

}  // namespace nola::cuda
