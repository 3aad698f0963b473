#include "introspect/core/check.h"
#include "introspect/statistics/clustered_mean.h"
#include "introspect/statistics/equivalence.h"
#include "introspect/statistics/meta_analysis.h"
#include "numbers.h"

namespace introspect::python {

using namespace statistics;

namespace {

ClusterErrors errors_of(const std::string& name) {
  check<std::invalid_argument>(name == "student" || name == "bootstrap_t",
                               "equivalence: errors must be student or bootstrap_t, got ", name);
  return name == "student" ? ClusterErrors::kStudent : ClusterErrors::kBootstrapT;
}

Heterogeneity heterogeneity_of(const std::string& method) {
  if (method == "reml") return Heterogeneity::kReml;
  if (method == "paule_mandel") return Heterogeneity::kPauleMandel;
  if (method == "dersimonian_laird") return Heterogeneity::kDerSimonianLaird;
  throw std::invalid_argument("meta_analysis: method must be reml, paule_mandel or dersimonian_laird, got " +
                              method);
}

void bind_clustered_mean(py::module_& m) {
  py::class_<ClusteredMean>(m, "ClusteredMean", R"doc(
The mean of a quantity over a sample of clusters, of which there may be few.

``p_greater`` and ``p_less`` are the chances of so high and so low a mean by Student's t, ``p_greater_by_flips`` and
``p_less_by_flips`` by flips of signs.
)doc")
      .def_readonly("value", &ClusteredMean::value)
      .def_readonly("standard_error", &ClusteredMean::standard_error)
      .def_readonly("clusters", &ClusteredMean::clusters)
      .def_readonly("interval", &ClusteredMean::interval)
      .def_readonly("p_greater", &ClusteredMean::p_greater)
      .def_readonly("p_less", &ClusteredMean::p_less)
      .def_readonly("p_greater_by_flips", &ClusteredMean::p_greater_by_flips)
      .def_readonly("p_less_by_flips", &ClusteredMean::p_less_by_flips);
  m.def(
      "clustered_mean",
      [](std::span<const double> values, const std::vector<std::string>& clusters, double confidence,
         double null, int64_t flips,
         uint64_t seed) { return clustered_mean(values, clusters, {confidence, null, flips, seed}); },
      py::arg("values"), py::arg("clusters"), py::kw_only(), py::arg("confidence") = 0.95,
      py::arg("null") = 0.0, py::arg("flips") = 16384, py::arg("seed") = 0,
      py::call_guard<py::gil_scoped_release>(), R"doc(
The mean over clusters (concepts, say) with its interval and one-sided p-values; each cluster counts alike.

Student's t on the clusters' means (Ibragimov & Müller 2010) needs no agreement of their variances or sizes; flips of the
signs of their distances from ``null`` (Canay, Romano & Shaikh 2017) are exact where these are symmetric. c clusters
cannot give a p of flips below 2^-c.

Args:
    values: [n] numbers.
    clusters: [n], the cluster of each.
    confidence: of the interval.
    null: the mean that the p-values are against.
    flips: of signs; all of them where there are no more.
    seed: of the flips where there are more.

Raises:
    ValueError: lists of different lengths, numbers that are not finite, fewer than two clusters, clusters whose means are
        all equal, or options out of range.
)doc");
}

void bind_bounds(py::module_& m) {
  py::class_<Equivalence>(m, "Equivalence", R"doc(
Whether a mean is shown to lie between two bounds.

``p``, the larger of ``p_low`` and ``p_high``, is of the claim; ``mean`` has the interval of confidence 1 - 2 level;
``smallest_bound`` is the least margin, plus and minus, within which equivalence is shown.
)doc")
      .def_readonly("mean", &Equivalence::mean)
      .def_readonly("p_low", &Equivalence::p_low)
      .def_readonly("p_high", &Equivalence::p_high)
      .def_readonly("p", &Equivalence::p)
      .def_readonly("smallest_bound", &Equivalence::smallest_bound);
  m.def(
      "equivalence",
      [](std::span<const double> values, const std::vector<std::string>& clusters,
         std::pair<double, double> bounds, double level, const std::string& errors, int64_t resamples,
         uint64_t seed) {
        return equivalence(values, clusters, {bounds.first, bounds.second},
                           {level, errors_of(errors), resamples, seed});
      },
      py::arg("values"), py::arg("clusters"), py::arg("bounds"), py::kw_only(), py::arg("level") = 0.05,
      py::arg("errors") = "student", py::arg("resamples") = 9999, py::arg("seed") = 0,
      py::call_guard<py::gil_scoped_release>(), R"doc(
Two one-sided tests over clusters (Schuirmann 1987): what a null result must pass before it is called one.

Args:
    values: [n] numbers.
    clusters: [n], the cluster of each.
    bounds: (low, high), in the unit of the values.
    level: of either test, and so of the claim.
    errors: "student" (t of the clusters' means) or "bootstrap_t" (clusters drawn with replacement).
    resamples: of the bootstrap.
    seed: of the bootstrap.

Raises:
    ValueError: as ``clustered_mean``, and for bounds that are not finite or not in order.
)doc");
}

void bind_meta_analysis(py::module_& m) {
  py::class_<MetaAnalysis>(m, "MetaAnalysis", R"doc(
Effects of several studies as a sample of studies.

``effect`` is the mean over studies, ``p`` its two-sided p; ``prediction`` is where one more study's effect would lie (NaN for
fewer than three studies); ``i_squared`` is the share of the variance that lies between studies, 0 to 1; ``q`` and ``p_q``
are Cochran's test that all have one effect; ``weights`` sum to 1.
)doc")
      .def_readonly("effect", &MetaAnalysis::effect)
      .def_readonly("p", &MetaAnalysis::p)
      .def_readonly("tau_squared", &MetaAnalysis::tau_squared)
      .def_readonly("tau_squared_interval", &MetaAnalysis::tau_squared_interval)
      .def_readonly("q", &MetaAnalysis::q)
      .def_readonly("p_q", &MetaAnalysis::p_q)
      .def_readonly("i_squared", &MetaAnalysis::i_squared)
      .def_readonly("i_squared_interval", &MetaAnalysis::i_squared_interval)
      .def_readonly("prediction", &MetaAnalysis::prediction)
      .def_readonly("weights", &MetaAnalysis::weights);
  m.def(
      "meta_analysis",
      [](std::span<const double> effects, std::span<const double> standard_errors, const std::string& method,
         bool hartung_knapp, double confidence) {
        return meta_analysis(effects, standard_errors, {heterogeneity_of(method), hartung_knapp, confidence});
      },
      py::arg("effects"), py::arg("standard_errors"), py::kw_only(), py::arg("method") = "reml",
      py::arg("hartung_knapp") = true, py::arg("confidence") = 0.95, py::call_guard<py::gil_scoped_release>(),
      R"doc(
Random-effects meta-analysis of studies that share no readings.

Args:
    effects: [studies].
    standard_errors: [studies], above 0.
    method: of the variance between studies: "reml" (Viechtbauer 2005), "paule_mandel" (1982) or "dersimonian_laird" (1986).
    hartung_knapp: t with the observed spread (Hartung & Knapp 2001), never narrower than without it (Röver, Knapp & Friede
        2015); False: normal, which is too narrow for few studies.
    confidence: of the intervals. That of tau squared is by Q's profile (Viechtbauer 2007), the prediction interval as
        Higgins, Thompson & Spiegelhalter 2009.

Raises:
    ValueError: fewer than two studies, lists of different lengths, effects that are not finite, standard errors not above
        0, or another method.
)doc");
}

}  // namespace

void bind_clusters(py::module_& m) {
  bind_clustered_mean(m);
  bind_bounds(m);
  bind_meta_analysis(m);
}

}  // namespace introspect::python
