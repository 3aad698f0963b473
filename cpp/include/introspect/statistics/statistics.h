#pragma once

// The statistics of experiments, by subject. All take plain numbers in float64 and, where chance plays a part, a seed.
#include "introspect/statistics/bootstrap.h"
#include "introspect/statistics/clustered_mean.h"
#include "introspect/statistics/confusion.h"
#include "introspect/statistics/detection.h"
#include "introspect/statistics/equivalence.h"
#include "introspect/statistics/meta_analysis.h"
#include "introspect/statistics/multiple_comparisons.h"
#include "introspect/statistics/null_band.h"
#include "introspect/statistics/rank_agreement.h"
#include "introspect/statistics/shift_table.h"
