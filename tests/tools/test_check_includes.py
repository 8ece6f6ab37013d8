"""tools/check-includes over small trees of its own: each test names one include that the design allows or forbids."""
import pathlib, subprocess, sys, tempfile, unittest

TOOL = pathlib.Path(__file__).parents[2] / "tools/check-includes"


def check(**files):
    """Exit status and output for a tree of files: a name with __ for / and _h or _c for the suffix, to the header it includes."""
    with tempfile.TemporaryDirectory() as root:
        for name, include in files.items():
            path = pathlib.Path(root, name.replace("__", "/")[:-2] + "." + name[-1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#include {include}\n")
        done = subprocess.run([sys.executable, TOOL, root], capture_output=True, text=True)
        return done.returncode, done.stdout


class Includes(unittest.TestCase):
    def allowed(self, **files):
        status, out = check(**files)
        self.assertEqual(status, 0, out)

    def refused(self, words, **files):
        status, out = check(**files)
        self.assertEqual(status, 1)
        self.assertIn(words, out)

    def test_a_folder_may_include_those_below_it_and_no_other(self):
        self.allowed(src__train__x_c='"model/parts.h"')
        self.refused("src/train/x.c:1: train may not include text/bpe.h", src__train__x_c='"text/bpe.h"')
        self.refused("src/model/x.c:1: model may not include operant/chat.h", src__model__x_c="<operant/chat.h>")
        self.refused("src/cli/x.c:1: cli may not include io/json.h", src__cli__x_c='"io/json.h"')

    def test_a_public_header_keeps_to_the_table_too(self):
        self.allowed(include__operant__chat_h="<operant/tokenizer.h>")
        self.refused("include/operant/model.h:1: model may not include operant/chat.h", include__operant__model_h="<operant/chat.h>")
        self.refused("include/operant/new.h: belongs to no folder", include__operant__new_h="<stdio.h>")

    def test_each_library_is_included_in_its_own_place_only(self):
        homes = {"openssl/sha.h": "base/hash.c", "zlib.h": "io/zip.c", "yaml.h": "io/yaml_doc.h", "utf8proc.h": "text/normalize.c", "pcre2.h": "lab/judge.c",
                 "oneapi/dnnl/dnnl.h": "ops/cpu/products.c", "omp.h": "ops/cpu/rows.c", "jansson.h": "train/run.c"}
        self.allowed(**{f"src__{home[:-2].replace('/', '__')}_{home[-1]}": f"<{header}>" for header, home in homes.items()})
        status, out = check(**{f"src__base__other{i}_c": f"<{header}>" for i, header in enumerate(homes)})
        self.assertEqual(status, 1)
        for header in homes:
            self.assertIn(f"base may not include {header} here", out)
        self.refused("train may not include openssl/sha.h here", src__train__run_c="<openssl/sha.h>")

    def test_the_standard_library_is_for_all(self):
        self.allowed(src__base__x_c="<stdio.h>", src__cli__x_c="<unistd.h>")


if __name__ == "__main__":
    unittest.main()
