"""python -m unittest test_run_jobs: with a train.py that only ends with the status that it is told."""

import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path


class RunJobsTest(unittest.TestCase):
    def run_jobs(self, *jobs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            shutil.copy(Path(__file__).with_name("run_jobs.py"), folder)
            (folder / "train.py").write_text("import sys\nprint('ran', *sys.argv[3:], flush=True)\nsys.exit(int(sys.argv[-1]))\n")
            (folder / "jobs.txt").write_text("\n".join(jobs))
            return subprocess.run(
                [sys.executable, folder / "run_jobs.py", folder / "jobs.txt"], stdout=subprocess.PIPE, text=True
            )

    def test_a_failure_is_told_and_the_others_run(self):
        ended = self.run_jobs("--status 0", "--status 3", "# --status 4", "--status 0")
        self.assertEqual(ended.returncode, 1)
        self.assertEqual(ended.stdout.count("ran"), 3)
        self.assertIn("failed with exit status 3: --status 3", ended.stdout)

    def test_success_is_status_0(self):
        self.assertEqual(self.run_jobs("--status 0", "--status 0").returncode, 0)


if __name__ == "__main__":
    unittest.main()
