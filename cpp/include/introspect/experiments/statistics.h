#pragma once

// The statistics of experiments, by subject. All take plain numbers in float64 and, where chance plays a part, a seed.
#include "introspect/experiments/bootstrap.h"
#include "introspect/experiments/confusion.h"
#include "introspect/experiments/detection.h"
#include "introspect/experiments/multiple_comparisons.h"
#include "introspect/experiments/null_band.h"
#include "introspect/experiments/rank_agreement.h"
#include "introspect/experiments/shift_table.h"
