import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["progeo.evaluation.options", "progeo.features.options"])
def test_options_import_no_torch(module):
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
