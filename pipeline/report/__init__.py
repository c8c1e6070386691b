"""x"""
def write_report(run_dir):
    return run_dir / "report.html"
