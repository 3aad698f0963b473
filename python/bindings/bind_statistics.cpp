#include "bindings.h"

#include "introspect/core/check.h"
#include "introspect/statistics/statistics.h"
#include "numbers.h"

namespace introspect::python {

using namespace statistics;

namespace {

BootstrapOptions options_of(int64_t resamples, double confidence, const std::string& method, uint64_t seed) {
  check<std::invalid_argument>(method == "bca" || method == "percentile",
                               "bootstrap: method must be bca or percentile, got ", method);
  return {resamples, confidence, method == "bca" ? IntervalMethod::kBca : IntervalMethod::kPercentile, seed};
}

Correction correction_of(const std::string& method) {
  if (method == "bonferroni") return Correction::kBonferroni;
  if (method == "holm") return Correction::kHolm;
  if (method == "benjamini_hochberg") return Correction::kBenjaminiHochberg;
  if (method == "benjamini_yekutieli") return Correction::kBenjaminiYekutieli;
  throw std::invalid_argument(
      "adjusted_p: method must be bonferroni, holm, benjamini_hochberg or benjamini_yekutieli, got " +
      method);
}

void bind_values(py::module_& m) {
  py::class_<Interval>(m, "Interval", "An interval; both ends belong to it.")
      .def_readonly("low", &Interval::low)
      .def_readonly("high", &Interval::high)
      .def(
          "__contains__", [](const Interval& i, double x) { return i.low <= x && x <= i.high; }, py::arg("x"))
      .def("__repr__", [](const Interval& i) { return concat("[", i.low, ", ", i.high, "]"); });
  py::class_<Estimate>(m, "Estimate", "A number with its interval and its standard error.")
      .def_readonly("value", &Estimate::value)
      .def_readonly("interval", &Estimate::interval)
      .def_readonly("standard_error", &Estimate::standard_error)
      .def("__repr__", [](const Estimate& e) {
        return concat(e.value, " [", e.interval.low, ", ", e.interval.high, "]");
      });
  py::class_<Factor>(m, "Factor", R"doc(
One way in which observations are alike: the question they ask, its paraphrase, the concept injected.

Levels that are a sample of a population (questions one might have asked) are resampled; what is fixed by design is no
factor.
)doc")
      .def(py::init([](std::string name, std::vector<std::string> levels, std::string within) {
             return Factor{std::move(name), std::move(levels), std::move(within)};
           }),
           py::arg("name"), py::arg("levels"), py::kw_only(), py::arg("within") = "", R"doc(
Args:
    name: what errors and ``within`` call it.
    levels: of each observation.
    within: the name of a factor before it, in each of whose levels this one has levels of its own.
)doc")
      .def_readonly("name", &Factor::name)
      .def_readonly("levels", &Factor::levels)
      .def_readonly("within", &Factor::within);
  py::class_<Proportion>(m, "Proportion", "Successes of independent trials, with the exact interval.")
      .def_readonly("successes", &Proportion::successes)
      .def_readonly("trials", &Proportion::trials)
      .def_readonly("value", &Proportion::value)
      .def_readonly("interval", &Proportion::interval)
      .def("__repr__",
           [](const Proportion& p) { return concat(p.successes, " of ", p.trials, " = ", p.value); });
}

void bind_bootstrap(py::module_& m) {
  m.def(
      "bootstrap_mean",
      [](std::span<const double> values, const std::vector<Factor>& factors, int64_t resamples,
         double confidence, const std::string& method, uint64_t seed) {
        return bootstrap_mean(values, factors, options_of(resamples, confidence, method, seed));
      },
      py::arg("values"), py::arg("factors") = std::vector<Factor>{}, py::kw_only(),
      py::arg("resamples") = 10000, py::arg("confidence") = 0.95, py::arg("method") = "bca",
      py::arg("seed") = 0, py::call_guard<py::gil_scoped_release>(), R"doc(
The mean with its bootstrap interval over crossed and nested factors.

Each factor's levels are drawn with replacement, those of a nested one within each level of the factor around it, and an
observation's weight is the product of how often its levels were drawn (Owen 2007, "The pigeonhole bootstrap"; Owen &
Eckles 2012). BCa: Efron 1987, several samples as Davison & Hinkley 1997, 5.3. The same seed gives the same bits.

Args:
    values: [n] numbers.
    factors: what observations share; none: every observation is drawn by itself.
    resamples: bootstrap replicates.
    confidence: of the interval.
    method: "bca" or "percentile".
    seed: of the draws.

Raises:
    ValueError: fewer than two observations, numbers that are not finite, factors of another length, no factor with two
        levels to draw from, or options out of range.
)doc");
  m.def(
      "bootstrap_difference",
      [](std::span<const double> values, std::span<const int64_t> arms, const std::vector<Factor>& factors,
         int64_t resamples, double confidence, const std::string& method, uint64_t seed) {
        return bootstrap_difference(values, arms, factors, options_of(resamples, confidence, method, seed));
      },
      py::arg("values"), py::arg("arms"), py::arg("factors") = std::vector<Factor>{}, py::kw_only(),
      py::arg("resamples") = 10000, py::arg("confidence") = 0.95, py::arg("method") = "bca",
      py::arg("seed") = 0, py::call_guard<py::gil_scoped_release>(), R"doc(
The mean of arm 1 less the mean of arm 0, with its bootstrap interval.

A factor each of whose levels lies in one arm (questions of either kind) is drawn within each arm; one with levels in
both (concepts) is drawn for both at once, so that what the arms share cancels. Otherwise as ``bootstrap_mean``.

Args:
    values: [n] numbers.
    arms: [n], 0 or 1.
    factors: what observations share.
    resamples: bootstrap replicates.
    confidence: of the interval.
    method: "bca" or "percentile".
    seed: of the draws.

Raises:
    ValueError: as ``bootstrap_mean``, and unless every arm is 0 or 1 and both are there.
)doc");
  m.def("bootstrap_interval", &bootstrap_interval, py::arg("replicates"), py::arg("estimate"), py::kw_only(),
        py::arg("confidence") = 0.95, py::arg("acceleration") = py::none(), R"doc(
The interval that bootstrap replicates of a statistic give.

Args:
    replicates: [n] values of the statistic on resamples.
    estimate: its value on the sample.
    confidence: of the interval.
    acceleration: Efron's (1987), for BCa; None means percentiles.

Raises:
    ValueError: no replicates, or a confidence not between 0 and 1.
)doc");

  py::class_<ShiftRow>(m, "ShiftRow", "One question: means over its readings, log-odds in nats.")
      .def_readonly("question", &ShiftRow::question)
      .def_readonly("control", &ShiftRow::control)
      .def_readonly("n", &ShiftRow::n)
      .def_readonly("base", &ShiftRow::base)
      .def_readonly("injected", &ShiftRow::injected)
      .def_readonly("shift", &ShiftRow::shift);
  py::class_<ShiftTable>(m, "ShiftTable", R"doc(
Introspection and control questions side by side.

``introspection`` and ``control`` are the mean shifts, their intervals None where there is nothing to draw from; ``effect``
is their difference, what is left of the shift apart from a general yes-bias.
)doc")
      .def_readonly("rows", &ShiftTable::rows)
      .def_readonly("introspection_base", &ShiftTable::introspection_base)
      .def_readonly("introspection_injected", &ShiftTable::introspection_injected)
      .def_readonly("control_base", &ShiftTable::control_base)
      .def_readonly("control_injected", &ShiftTable::control_injected)
      .def_readonly("introspection", &ShiftTable::introspection)
      .def_readonly("control", &ShiftTable::control)
      .def_readonly("introspection_interval", &ShiftTable::introspection_interval)
      .def_readonly("control_interval", &ShiftTable::control_interval)
      .def_readonly("effect", &ShiftTable::effect);
  m.def(
      "shift_table",
      [](std::span<const double> base, std::span<const double> injected,
         const std::vector<std::string>& questions, std::span<const int64_t> control,
         const std::vector<Factor>& factors, int64_t resamples, double confidence, const std::string& method,
         uint64_t seed) {
        return shift_table(base, injected, questions, control, factors,
                           options_of(resamples, confidence, method, seed));
      },
      py::arg("base"), py::arg("injected"), py::arg("questions"), py::arg("control"),
      py::arg("factors") = std::vector<Factor>{}, py::kw_only(), py::arg("resamples") = 10000,
      py::arg("confidence") = 0.95, py::arg("method") = "bca", py::arg("seed") = 0,
      py::call_guard<py::gil_scoped_release>(), R"doc(
Shifts of log-odds by injection, of introspection questions beside control questions.

Args:
    base: [n] log-odds of each reading without injection, nats.
    injected: [n] log-odds with it.
    questions: [n], the question of each reading; a factor named "question", within which others can lie.
    control: [n], true for readings of control questions.
    factors: what else readings share (concepts, paraphrases), each resampled as well. An arm with one question is
        conditional on this question.
    resamples: bootstrap replicates.
    confidence: of the intervals.
    method: "bca" or "percentile".
    seed: of the draws.

Returns:
    The table, with the difference of the arms and its bootstrap interval (as ``bootstrap_difference``).

Raises:
    ValueError: lists of other lengths, numbers that are not finite, an arm without readings, a question in both arms,
        or fewer than two levels to draw from.
)doc");
}

void bind_nulls(py::module_& m) {
  py::class_<NullBand>(m, "NullBand", R"doc(
A value among the same quantity of random vectors.

``band`` holds the nulls' quantiles; ``z`` is NaN where the nulls have no spread; ``rank`` is 1 for the highest, ties against
it; ``p`` is (1 + #{null >= value}) / (1 + n), ``p_two_sided`` twice the smaller of it and its mirror image.
)doc")
      .def_readonly("value", &NullBand::value)
      .def_readonly("n", &NullBand::n)
      .def_readonly("mean", &NullBand::mean)
      .def_readonly("standard_deviation", &NullBand::standard_deviation)
      .def_readonly("band", &NullBand::band)
      .def_readonly("z", &NullBand::z)
      .def_readonly("rank", &NullBand::rank)
      .def_readonly("p", &NullBand::p)
      .def_readonly("p_two_sided", &NullBand::p_two_sided);
  m.def("null_band", &null_band, py::arg("value"), py::arg("nulls"), py::kw_only(),
        py::arg("confidence") = 0.95, R"doc(
Where a value lies among nulls; n nulls cannot give a p below 1 / (1 + n).

Source: Davison & Hinkley 1997, 4.2; Phipson & Smyth 2010.

Args:
    value: the quantity for the concept's vector.
    nulls: [n], the quantity for each random vector.
    confidence: the share of the nulls between the ends of the band.

Raises:
    ValueError: no nulls, numbers that are not finite, or a confidence not between 0 and 1.
)doc");
  m.def("null_bands", &null_bands, py::arg("values"), py::arg("nulls"), py::kw_only(),
        py::arg("confidence") = 0.95, R"doc(
``null_band`` at every point of a curve (layers, strengths).

Args:
    values: [points].
    nulls: [n, points].
    confidence: the share of the nulls between the ends of each band.

Raises:
    ValueError: as ``null_band``, and for nulls with another number of points.
)doc");
  py::class_<MaxNullBand>(m, "MaxNullBand", R"doc(
The points of a sweep against the highest point of each null's sweep.

``p`` is of each point, adjusted for looking at all of them; ``p_any`` of the highest; ``threshold`` is what a null's
highest point exceeds with 1 - confidence. In its units: ``scores`` of the curve's points, their ``highest``, and
``null_highest`` of each null's sweep.
)doc")
      .def_readonly("p", &MaxNullBand::p)
      .def_readonly("p_any", &MaxNullBand::p_any)
      .def_readonly("threshold", &MaxNullBand::threshold)
      .def_readonly("scores", &MaxNullBand::scores)
      .def_readonly("highest", &MaxNullBand::highest)
      .def_readonly("null_highest", &MaxNullBand::null_highest);
  m.def("max_null_band", &max_null_band, py::arg("values"), py::arg("nulls"), py::kw_only(),
        py::arg("confidence") = 0.95, py::arg("studentise") = true, R"doc(
p-values of the points of a sweep from the nulls' maxima, adjusted for looking at all points.

Source: Westfall & Young 1993, 2.3 (single-step maxT); Nichols & Holmes 2002.

Args:
    values: [points].
    nulls: [n, points].
    confidence: of the threshold.
    studentise: measure each point from the mean and in the standard deviation of the curve and the nulls together, so
        that points with noisy nulls do not hide the others; the threshold is then in these units.

Raises:
    ValueError: as ``null_bands``.
)doc");
}

void bind_detection(py::module_& m) {
  m.def("proportion", &proportion, py::arg("successes"), py::arg("trials"), py::kw_only(),
        py::arg("confidence") = 0.95, R"doc(
The share of successes with its exact interval (Clopper & Pearson 1934).

Raises:
    ValueError: not 0 <= successes <= trials, no trials, or a confidence not between 0 and 1.
)doc");
  m.def("binomial_p", &binomial_p, py::arg("successes"), py::arg("trials"), py::arg("chance"), R"doc(
The chance of at least ``successes`` of ``trials``, each with probability ``chance`` (exact, one-sided).

Raises:
    ValueError: counts as in ``proportion``, or a chance not from 0 to 1.
)doc");
  py::class_<Sensitivity>(m, "Sensitivity", R"doc(
Yes and no with and without an injection: rates, d' and criterion.

``criterion`` is 0 without bias and above 0 when "no" is preferred.
)doc")
      .def_readonly("hits", &Sensitivity::hits)
      .def_readonly("false_alarms", &Sensitivity::false_alarms)
      .def_readonly("d_prime", &Sensitivity::d_prime)
      .def_readonly("criterion", &Sensitivity::criterion);
  m.def("sensitivity", &sensitivity, py::arg("hits"), py::arg("misses"), py::arg("false_alarms"),
        py::arg("correct_rejections"), py::kw_only(), py::arg("confidence") = 0.95, R"doc(
Hit rate, false-alarm rate, d' and criterion of a yes-no task.

d' and criterion (Green & Swets 1966) with 0.5 added to each count and 1 to each number of trials, the log-linear
correction of Hautus 1995; the rates are as counted, with exact intervals.

Raises:
    ValueError: negative counts, or no trials of either kind.
)doc");
  m.def("auc", &auc, py::arg("positives"), py::arg("negatives"), py::kw_only(), py::arg("confidence") = 0.95,
        R"doc(
The chance that a positive scores above a negative, ties half.

The standard error is DeLong's (1988), the interval normal and cut at 0 and 1; for classes that do not overlap the error
is 0.

Raises:
    ValueError: fewer than two of either, or scores that are not finite.
)doc");
  py::class_<MatchedRate>(m, "MatchedRate", "A threshold on the score, and what scores at or above it.")
      .def_readonly("threshold", &MatchedRate::threshold)
      .def_readonly("hit_rate", &MatchedRate::hit_rate)
      .def_readonly("false_alarm_rate", &MatchedRate::false_alarm_rate);
  m.def("false_alarms_at", &false_alarms_at, py::arg("positives"), py::arg("negatives"), py::arg("hit_rate"),
        R"doc(
False alarms at the highest threshold that gives at least this hit rate.

Raises:
    ValueError: no positives or negatives, scores that are not finite, or a hit rate not above 0 and at most 1.
)doc");
  py::class_<Confusion>(m, "Confusion", R"doc(
What reports tell about what was injected. Information is in bits.

``information`` is the plug-in estimate, ``information_corrected`` the same with Miller and Madow's correction,
``information_by_chance`` its mean over permutations; ``p_accuracy`` and ``p_information`` are one-sided.
)doc")
      .def_readonly("accuracy", &Confusion::accuracy)
      .def_readonly("chance", &Confusion::chance)
      .def_readonly("p_accuracy", &Confusion::p_accuracy)
      .def_readonly("information", &Confusion::information)
      .def_readonly("information_corrected", &Confusion::information_corrected)
      .def_readonly("information_by_chance", &Confusion::information_by_chance)
      .def_readonly("p_information", &Confusion::p_information);
  m.def("confusion", &confusion, py::arg("counts"), py::kw_only(), py::arg("confidence") = 0.95,
        py::arg("permutations") = 10000, py::arg("seed") = 0, py::call_guard<py::gil_scoped_release>(), R"doc(
Accuracy and mutual information of a confusion matrix: rows are what was injected, columns what was reported.

Accuracy has its exact interval (Clopper & Pearson 1934) and binomial p against 1 / rows; information is Shannon's, with
Miller's (1955) correction and a p from permutations that keep both margins (Phipson & Smyth 2010).

Args:
    counts: [k, k or more] trials; row i means the same as column i, further columns are answers that name none.
    confidence: of the interval.
    permutations: of the reports over the trials.
    seed: of the permutations.

Raises:
    ValueError: fewer than two rows, fewer columns than rows, counts that are not whole, or no trials.
)doc");
}

void bind_orders(py::module_& m) {
  m.def(
      "adjusted_p",
      [](std::span<const double> p_values, const std::string& method) {
        return adjusted_p(p_values, correction_of(method));
      },
      py::arg("p_values"), py::arg("method") = "holm", R"doc(
p-values adjusted for their number: what is at most alpha may be called found at alpha.

Args:
    p_values: [n].
    method: "bonferroni" or "holm" (1979) bound the chance of any error, "benjamini_hochberg" (1995) the share of errors
        among findings under independence or positive dependence, "benjamini_yekutieli" (2001) under any dependence.

Raises:
    ValueError: no values, values not from 0 to 1, or another method.
)doc");
  m.def("spearman", &spearman, py::arg("a"), py::arg("b"), R"doc(
Correlation of the ranks of two lists, ties sharing their mean (Spearman 1904); NaN where one is constant.

Raises:
    ValueError: lists of different lengths, fewer than two values, or values that are not finite.
)doc");
  m.def("kendall_tau", &kendall_tau, py::arg("a"), py::arg("b"), R"doc(
Kendall's tau-b (1945), computed as Knight 1966; NaN where one list is constant.

Raises:
    ValueError: lists of different lengths, fewer than two values, or values that are not finite.
)doc");
  m.def("top_k_overlap", &top_k_overlap, py::arg("a"), py::arg("b"), py::arg("k"), R"doc(
The share of the k highest of ``a`` that are among the k highest of ``b``; of equal values the first is higher.

Raises:
    ValueError: lists as in ``spearman``, or k not from 1 to their length.
)doc");
}

}  // namespace

void bind_statistics(py::module_& m) {
  bind_values(m);
  bind_bootstrap(m);
  bind_nulls(m);
  bind_detection(m);
  bind_orders(m);
  bind_clusters(m);
}

}  // namespace introspect::python
