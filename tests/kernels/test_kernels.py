"""What importing the package brings along."""

import subprocess
import sys

from helpers import ROOT


def test_importing_kernels_loads_no_triton():
    code = "import sys, kernels; assert not {'triton', 'minibio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
