#pragma once

#include <span>
#include <vector>

#include "introspect/export.h"
#include "introspect/statistics/bootstrap.h"

namespace introspect::statistics {

/// How the variance between studies is estimated.
enum class Heterogeneity {
  kReml,              // restricted maximum likelihood
  kPauleMandel,       // where Q equals its expectation
  kDerSimonianLaird,  // moments, in one step
};

struct MetaAnalysisOptions {
  Heterogeneity method = Heterogeneity::kReml;
  bool hartung_knapp =
      true;  // t with the observed spread; false: normal, which is too narrow for few studies
  double confidence = 0.95;
};

/// Effects of several studies, each with its standard error, as a sample of studies.
struct MetaAnalysis {
  Estimate effect;         // the mean over studies
  double p = 1;            // two-sided, of a mean of 0
  double tau_squared = 0;  // variance between studies
  Interval tau_squared_interval;
  double q = 0, p_q = 1;  // Cochran's test that all studies have one effect
  double i_squared = 0;   // share of the variance that is between studies, 0 to 1
  Interval i_squared_interval;
  Interval
      prediction;  // where the effect of one more study would lie; NaN for fewer than three, too narrow for few
  std::vector<double> weights;  // of the studies, summing to 1
};

/// Random-effects meta-analysis.
///
/// The Hartung-Knapp variance is never taken below the usual one, so that studies which agree by luck give no
/// narrow interval. Studies that share readings are not independent: merge those first.
/// Throws std::invalid_argument for fewer than two studies, lists of different lengths, effects that are not finite,
/// standard errors not above 0, or a confidence not between 0 and 1.
/// Source: DerSimonian & Laird 1986; Paule & Mandel 1982; Viechtbauer 2005 (REML) and 2007 (interval of tau squared by
/// Q's profile); Hartung & Knapp 2001, with the bound of Röver, Knapp & Friede 2015; Higgins & Thompson 2002 (I
/// squared); Higgins, Thompson & Spiegelhalter 2009 (prediction interval, studies - 2 degrees of freedom).
INTROSPECT_EXPORT MetaAnalysis meta_analysis(std::span<const double> effects,
                                             std::span<const double> standard_errors,
                                             const MetaAnalysisOptions& options = {});

}  // namespace introspect::statistics
