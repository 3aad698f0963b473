#include "bindings.h"

#include "activation_streams.h"
#include "introspect/activations/activation_file.h"
#include "introspect/activations/activation_stream.h"
#include "introspect/core/check.h"
#include "native_model.h"

namespace introspect::python {
namespace {

using namespace activations;
using NoGil = py::call_guard<py::gil_scoped_release>;
using OptionalId = std::optional<int64_t>;
using Texts = std::vector<std::string>;
using Ids = std::vector<std::vector<int64_t>>;
using Paths = std::vector<std::filesystem::path>;

/// Documents of a function that returns an iterator over lists of ids, from a document on.
Documents documents_of(py::object open, std::string identity) {
  return Documents(
      [open = held(std::move(open))](int64_t first) -> Documents::Next {
        const py::gil_scoped_acquire acquire;
        return [iterator = held((*open)(first))]() -> std::optional<std::vector<int64_t>> {
          const py::gil_scoped_acquire again;
          if (PyErr_CheckSignals() != 0) throw py::error_already_set();
          PyObject* next = PyIter_Next(iterator->ptr());
          if (next == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
          if (next == nullptr) return std::nullopt;
          return py::reinterpret_steal<py::object>(next).cast<std::vector<int64_t>>();
        };
      },
      std::move(identity));
}

PackOptions packed_so(int64_t context, OptionalId bos, OptionalId separator, bool concatenate, bool packed,
                      bool repeat) {
  return {context, bos, separator, concatenate, packed, repeat};
}

/// A stream of its own that goes on where `stream` stands.
TokenStream copy_of(const TokenStream& stream) {
  auto out = stream;
  out.restore(stream.state());
  return out;
}

std::vector<int64_t> widths_of(const std::vector<StreamSite>& sites) {
  std::vector<int64_t> out;
  for (const auto& site : sites) out.push_back(site.width);
  return out;
}

SiteNames names_of(const std::vector<StreamSite>& sites) {
  SiteNames out;
  for (const auto& site : sites) out.emplace_back(site.hook_name, site.model);
  return out;
}

std::unique_ptr<ActivationSource> source_of(const std::vector<py::object>& models, const TokenStream& tokens,
                                            const SiteNames& sites, OptionalId first_position,
                                            OptionalId end_position, int64_t position_step,
                                            std::vector<int64_t> exclude_tokens, double max_norm_multiple,
                                            torch::ScalarType dtype, int64_t memory_budget,
                                            int64_t contexts_per_pass) {
  std::vector<std::shared_ptr<const models::Model>> native;
  for (const auto& model : models) native.push_back(native_model(model));
  const ModelActivationsOptions options{
      first_position,    end_position, position_step, std::move(exclude_tokens),
      max_norm_multiple, dtype,        memory_budget, contexts_per_pass};
  return model_activations(std::move(native), copy_of(tokens), sites_of(sites), options);
}

auto source_args() {
  const ModelActivationsOptions d;
  return std::make_tuple(
      py::kw_only(), py::arg("first_position") = py::none(), py::arg("end_position") = py::none(),
      py::arg("position_step") = d.position_step, py::arg("exclude_tokens") = py::tuple(),
      py::arg("max_norm_multiple") = d.max_norm_multiple, py::arg("dtype") = d.dtype,
      py::arg("memory_budget") = d.memory_budget, py::arg("contexts_per_pass") = d.contexts_per_pass);
}

auto mix_args() {
  const MixOptions d;
  return std::make_tuple(py::arg("batch_rows") = d.batch_rows, py::arg("buffer_rows") = d.buffer_rows,
                         py::arg("mixing") = d.mixing, py::arg("seed") = d.seed);
}

constexpr auto kSourceDoc = R"doc(
    models: introspect.Model; several that share a vocabulary read the same tokens.
    tokens: a TokenStream, which is read from where it stands; this one itself is not moved.
    sites: (hook name, number of the model) each; heads of a point stand one after another.
    first_position, end_position, position_step: of each context, as a slice; SAELens's ``seqpos_slice``.
    exclude_tokens: ids whose rows are dropped.
    max_norm_multiple: rows longer than so many times their pass's median at any site are dropped; 0: none.
    dtype: of rows: bfloat16, float32 or float64.
    memory_budget: bytes of one pass's activations.
    contexts_per_pass: 0: as many as make a pass of 2,048 tokens and fit the budget.
)doc";

void bind_token_stream(py::module_& m) {
  py::class_<TokenStream> type(m, "TokenStream", R"doc(
Contexts of documents, packed as SAELens packs them, one after another.

introspect.sae.token_stream makes one of texts in any form. Memory is that of one document.
)doc");
  const auto options = [](auto&&... first) {
    const PackOptions d;
    return std::make_tuple(first..., py::kw_only(), py::arg("context") = d.context,
                           py::arg("bos") = py::none(), py::arg("separator") = py::none(),
                           py::arg("concatenate") = d.concatenate, py::arg("packed") = d.packed,
                           py::arg("repeat") = d.repeat);
  };
  std::apply(
      [&](const auto&... args) {
        type.def_static(
            "of_texts",
            [](const py::object& model, Texts texts, int64_t context, OptionalId bos, OptionalId separator,
               bool concatenate, bool packed, bool repeat) {
              return TokenStream(Documents::of_texts(std::move(texts), native_model(model)),
                                 packed_so(context, bos, separator, concatenate, packed, repeat));
            },
            py::arg("model"), args..., "Of texts, tokenised one by one as they are read.");
      },
      options(py::arg("texts")));
  std::apply(
      [&](const auto&... args) {
        type.def_static(
            "of_tokens",
            [](Ids tokens, int64_t context, OptionalId bos, OptionalId separator, bool concatenate,
               bool packed, bool repeat) {
              return TokenStream(Documents::of_tokens(std::move(tokens)),
                                 packed_so(context, bos, separator, concatenate, packed, repeat));
            },
            args..., "Of lists of token ids.");
      },
      options(py::arg("tokens")));
  std::apply(
      [&](const auto&... args) {
        type.def_static(
            "of_files",
            [](const py::object& model, Paths paths, int64_t context, OptionalId bos, OptionalId separator,
               bool concatenate, bool packed, bool repeat) {
              return TokenStream(Documents::of_files(std::move(paths), native_model(model)),
                                 packed_so(context, bos, separator, concatenate, packed, repeat));
            },
            py::arg("model"), args..., R"doc(
Of files, read document by document.

.jsonl: an object a line, with "text", "problem", "tokens" or "input_ids". Any other file is text in UTF-8: one
document, or several with lines ``<|endoftext|>`` between them. Raises IoError.
)doc");
      },
      options(py::arg("paths")));
  std::apply(
      [&](const auto&... args) {
        type.def_static(
            "of_function",
            [](py::object open, std::string identity, int64_t context, OptionalId bos, OptionalId separator,
               bool concatenate, bool packed, bool repeat) {
              return TokenStream(documents_of(std::move(open), std::move(identity)),
                                 packed_so(context, bos, separator, concatenate, packed, repeat));
            },
            args..., "Of ``open(n)``, which returns an iterator over lists of ids from document n on.");
      },
      options(py::arg("open"), py::arg("identity")));
  type.def(
          "next", [](TokenStream& stream, int64_t n) { return stream.next(n); }, py::arg("n") = 1, NoGil(),
          "The next contexts, int64 [<= n, context]; fewer at the end.")
      .def("set_aside", &TokenStream::set_aside, py::arg("n"),
           "The first n contexts of every pass over the documents are left out from now on.")
      .def("state", &TokenStream::state, NoGil(), "Where it stands, as JSON.")
      .def("restore", &TokenStream::restore, py::arg("state"), NoGil(),
           "Goes on there. Raises IoError for a state of other documents or options.")
      .def_property_readonly("passes", &TokenStream::passes, "Over all documents that are finished.")
      .def_property_readonly("contexts", &TokenStream::contexts, "Given since the beginning.")
      .def_property_readonly("context", [](const TokenStream& s) { return s.options().context; })
      .def_property_readonly("bos", [](const TokenStream& s) { return s.options().bos; })
      .def_property_readonly("separator", [](const TokenStream& s) { return s.options().separator; })
      .def_property_readonly("repeat", [](const TokenStream& s) { return s.options().repeat; });
}

void bind_file(py::module_& m) {
  py::class_<ActivationFile>(m, "ActivationFile", R"doc(
Rows of activations at several sites on disk, so that many dictionaries are trained from one pass over a text.

A folder with rows.bin, mapped as it is used, and activations.json, which says what they are.
)doc")
      .def_static("open", &ActivationFile::open, py::arg("path"), py::arg("verify") = true, NoGil(), R"doc(
Opens what write_activations wrote; ``verify`` reads all of it and compares its hashes.

Raises:
    IoError: no activations, fewer bytes than the head says, or bytes that are not those written.
)doc")
      .def_property_readonly("path", &ActivationFile::path)
      .def_property_readonly(
          "sites", [](const ActivationFile& f) { return names_of(f.sites()); },
          "(hook name, number of the model) each.")
      .def_property_readonly("widths", [](const ActivationFile& f) { return widths_of(f.sites()); })
      .def_property_readonly("dtype", &ActivationFile::dtype)
      .def_property_readonly("rows", &ActivationFile::rows)
      .def_property_readonly("is_complete", &ActivationFile::is_complete,
                             "False: writing was broken off; the rows that there are are good.")
      .def_property_readonly("notes", &ActivationFile::notes, "JSON: what the writer said of them.")
      .def(
          "read",
          [](const ActivationFile& f, size_t site, int64_t first, int64_t last) {
            return f.read(site, first, last).clone();
          },
          py::arg("site"), py::arg("first"), py::arg("last"), NoGil(), "Rows first to last, [n, width].")
      .def("__repr__", [](const ActivationFile& f) {
        return concat("ActivationFile(", f.path().string(), ", ", f.rows(), " rows of ", f.sites().size(),
                      " sites", f.is_complete() ? "" : ", partial", ")");
      });

  std::apply(
      [&](const auto&... args) {
        m.def(
            "write_activations",
            [](const std::vector<py::object>& models, const TokenStream& tokens, const SiteNames& sites,
               const std::filesystem::path& path, OptionalId first_position, OptionalId end_position,
               int64_t position_step, std::vector<int64_t> exclude_tokens, double max_norm_multiple,
               torch::ScalarType dtype, int64_t memory_budget, int64_t contexts_per_pass, int64_t rows,
               int64_t commit_rows, bool resume, std::string notes, py::object progress) {
              const auto source = source_of(models, tokens, sites, first_position, end_position,
                                            position_step, std::move(exclude_tokens), max_norm_multiple,
                                            dtype, memory_budget, contexts_per_pass);
              const WriteActivationsOptions options{rows, commit_rows, resume, std::move(notes),
                                                    as_shown_progress(std::move(progress))};
              const py::gil_scoped_release release;
              return write_activations(*source, path, options);
            },
            py::arg("models"), py::arg("tokens"), py::arg("sites"), py::arg("path"), args...,
            (std::string(R"doc(
Writes the activations of models at some sites into a folder.

What a killed run has committed stays readable, marked as partial, and ``resume`` goes on there to the same bytes.

Args:)doc") + kSourceDoc +
             R"doc(
    path: the folder, made if it is not there.
    rows: to write; 0: to the end of the text.
    commit_rows: after so many rows what is written is safe.
    resume: goes on with a broken-off run of the same models, tokens, sites and options.
    notes: JSON that is kept.
    progress: called with (what, done, total).

Raises:
    IoError: activations are there already (others, with ``resume``), or the disk is full.
    As ActivationStream.of_model.
)doc")
                .c_str());
      },
      std::tuple_cat(
          source_args(),
          std::make_tuple(py::arg("rows") = 0, py::arg("commit_rows") = WriteActivationsOptions{}.commit_rows,
                          py::arg("resume") = false, py::arg("notes") = "{}",
                          py::arg("progress") = py::none())));
}

/// For rows that other processes read.
void bind_writer(py::module_& m) {
  std::apply(
      [&](const auto&... args) {
        m.def(
            "activation_source",
            [](const std::vector<py::object>& models, const TokenStream& tokens, const SiteNames& sites,
               OptionalId first_position, OptionalId end_position, int64_t position_step,
               std::vector<int64_t> exclude_tokens, double max_norm_multiple, torch::ScalarType dtype,
               int64_t memory_budget, int64_t contexts_per_pass) {
              const auto source = source_of(models, tokens, sites, first_position, end_position,
                                            position_step, std::move(exclude_tokens), max_norm_multiple,
                                            dtype, memory_budget, contexts_per_pass);
              return std::make_pair(source->state(), widths_of(source->sites()));
            },
            py::arg("models"), py::arg("tokens"), py::arg("sites"), args...,
            (std::string(R"doc(
Where write_activations begins, as JSON ("tokens", of the stream, and "contexts_per_pass"), and the widths of sites.

Args:)doc") + kSourceDoc +
             R"doc(
Raises:
    As ActivationStream.of_model.
)doc")
                .c_str());
      },
      source_args());
  py::class_<ActivationWriter>(m, "ActivationWriter", R"doc(
Writes rows that other processes have read into a folder, as write_activations does.
)doc")
      .def(py::init([](const std::filesystem::path& path, const SiteNames& sites,
                       const std::vector<int64_t>& widths, torch::ScalarType dtype,
                       const std::string& source_state, int64_t rows, bool resume, std::string notes) {
             auto at = sites_of(sites);
             check<std::invalid_argument>(widths.size() == at.size(),
                                          "ActivationWriter: one width a site, got ", widths.size(), " for ",
                                          at.size());
             for (size_t i = 0; i < at.size(); ++i) at[i].width = widths[i];
             WriteActivationsOptions options;
             options.rows = rows;
             options.resume = resume;
             options.notes = std::move(notes);
             return std::make_unique<ActivationWriter>(path, at, dtype, source_state, options);
           }),
           py::arg("path"), py::arg("sites"), py::arg("widths"), py::arg("dtype"), py::arg("source_state"),
           py::kw_only(), py::arg("rows") = 0, py::arg("resume") = false, py::arg("notes") = "{}",
           "Raises IoError: activations are there already (others, with ``resume``), or the disk is full.")
      .def_property_readonly("rows", &ActivationWriter::rows, "Written, by the run that was broken off too.")
      .def_property_readonly("is_full", &ActivationWriter::is_full,
                             "``rows`` are written, or the run had ended.")
      .def_property_readonly("source_state", &ActivationWriter::source_state, "After the last rows.")
      .def("write", &ActivationWriter::write, py::arg("rows"), py::arg("source_state"), NoGil(), R"doc(
Adds [N, width] at each site, and where the source stands after them.

Raises:
    ShapeError: other widths, or another dtype.
    IoError: the disk is full.
)doc")
      .def("commit", &ActivationWriter::commit, NoGil(), "What was written is safe from now on.")
      .def("finish", &ActivationWriter::finish, NoGil(), "The file, marked as complete.");
}

void bind_stream(py::module_& m) {
  py::class_<ActivationStream> type(m, "ActivationStream", R"doc(
Batches of activations at several sites of the same tokens, mixed over a buffer by SAELens's rule.

Rows come in until the buffer holds ``buffer_rows``; it is shuffled; all but ``mixing`` times that are served in whole
batches. With ``mixing`` 0 rows come in order.
)doc");
  std::apply(
      [&](const auto&... args) {
        type.def_static(
            "of_model",
            [](const std::vector<py::object>& models, const TokenStream& tokens, const SiteNames& sites,
               OptionalId first_position, OptionalId end_position, int64_t position_step,
               std::vector<int64_t> exclude_tokens, double max_norm_multiple, torch::ScalarType dtype,
               int64_t memory_budget, int64_t contexts_per_pass, int64_t batch_rows, int64_t buffer_rows,
               double mixing, uint64_t seed) {
              return ActivationStream(source_of(models, tokens, sites, first_position, end_position,
                                                position_step, std::move(exclude_tokens), max_norm_multiple,
                                                dtype, memory_budget, contexts_per_pass),
                                      {batch_rows, buffer_rows, mixing, seed});
            },
            py::arg("models"), py::arg("tokens"), py::arg("sites"), args...,
            (std::string(R"doc(
Activations of models that read tokens, through the block of the highest site and no further.

Args:)doc") + kSourceDoc +
             R"doc(
    batch_rows, buffer_rows, mixing, seed: of the buffer.

Raises:
    ValueError: a point without a vector a position, or options out of range.
    HookError: a site that the model does not have.
    ShapeError: contexts longer than n_ctx.
)doc")
                .c_str());
      },
      std::tuple_cat(source_args(), mix_args()));
  std::apply(
      [&](const auto&... args) {
        type.def_static(
            "of_file",
            [](const ActivationFile& file, bool repeat, int64_t batch_rows, int64_t buffer_rows,
               double mixing, uint64_t seed) {
              return ActivationStream(file_activations(file, repeat),
                                      {batch_rows, buffer_rows, mixing, seed});
            },
            py::arg("file"), py::kw_only(), py::arg("repeat") = false, args...,
            "The rows of a file, mixed; with ``repeat`` the first row follows the last.");
      },
      mix_args());
  type.def_property_readonly(
          "sites", [](const ActivationStream& s) { return names_of(s.sites()); },
          "(hook name, number of the model) each.")
      .def_property_readonly("widths", [](const ActivationStream& s) { return widths_of(s.sites()); })
      .def("hold_out", &ActivationStream::hold_out, py::arg("n"), NoGil(),
           "The first rows, about n, [N, width] at each site, which no batch has. Before the first batch.")
      .def("next_batch", &ActivationStream::next_batch, NoGil(),
           "[batch_rows, width] at each site; an empty list at the end.")
      .def_property_readonly("batches", &ActivationStream::batches, "Given so far.")
      .def("save", &ActivationStream::save, py::arg("path"), NoGil(),
           "Writes where it stands, its buffer included, as one .safetensors file. Raises IoError.")
      .def("restore", &ActivationStream::restore, py::arg("path"), NoGil(),
           "Goes on there with the same batches. Raises IoError, for a state of another stream too.")
      .def("check_state", &ActivationStream::check_state, py::arg("path"), NoGil(),
           "Raises IoError for a state of another stream; nothing else is done.");
}

}  // namespace

void bind_activation_streams(py::module_& m) {
  bind_token_stream(m);
  bind_file(m);
  bind_writer(m);
  bind_stream(m);
  bind_dictionary_runs(m);
}

}  // namespace introspect::python
